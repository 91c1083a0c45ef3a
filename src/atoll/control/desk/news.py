"""Waiting for state changes: a request that answers at once where there are some, else when there are."""

from __future__ import annotations

import asyncio
from typing import Any

from ..store import Store
from .office import Office, Row

LOOK = 5.0  # seconds: another process may write to the same database, and rings no bell here


async def events(office: Office, after: int, limit: int, wait: float, run: str | None) -> dict[str, Any]:
    """{"events": rows, "next": number to ask after}; of one run where `run` names it.

    `after` -1 only says where the log ends. `wait`: seconds to wait for a first event.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + wait
    if after < 0:
        return {"events": [], "next": await office.ask(lambda store: store.head()[0])}
    while True:
        pulled = office.bell.pulled
        rows: list[Row] = await office.ask(Store.events, after, limit, run=run)
        left = ends - loop.time()
        if rows or left <= 0 or office.closing:
            return {"events": rows, "next": rows[-1]["seq"] if rows else after}
        await office.bell.wait(pulled, min(left, LOOK))
