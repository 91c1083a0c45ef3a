"""Refusals of asks: each life of a server believes those that are its own, or name no life."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atoll.control.engine.asks import Asks, Sent
from atoll.control.engine.errands import Errands
from atoll.control.store import Store
from tests.store.fresh import opened


class Drive:
    """What is told of failures."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, str]] = []

    async def failed(self, request: int, name: str, reason: str) -> None:
        self.told.append((request, name, reason))


@pytest.mark.parametrize(("life", "believed"), [("own", True), ("", True), ("0123456789abcdef", False)])
def test_a_refusal_is_believed_by_the_life_that_asked(tmp_path: Path, life: str, believed: bool) -> None:
    said: list[dict[str, Any]] = []

    async def story(store: Store) -> Drive:
        drive = Drive()
        asks = Asks(Errands(store), None, lambda name, kind, head, along: said.append(dict(head)))  # type: ignore[arg-type]
        asks.put("r1.main.4", Sent(drive, 4, "r1"), "ann", {"params": "x"}, None)  # type: ignore[arg-type]
        await asks.refused("ann", "r1.main.4", "no rows", said[0]["life"] if life == "own" else life)
        return drive

    with opened(tmp_path) as store:
        drive = asyncio.run(story(store))
    assert drive.told == [(4, "ann", "no rows")] * believed
