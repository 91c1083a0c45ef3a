"""Receipts of budgets on their way: up from who signed them, kept at every server, and down again.

    client ─ letter "spent" ─► edge ─ letter "spent" ─► coordinator
    client ◄─ ask {receipts} ─ edge ◄─ letter "spent", before an ask ─ coordinator

A server believes only what the client has signed itself, and keeps it in its store. A letter that is lost is
said again when the client comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...core.errors import ProtocolError
from ...privacy.receipt import opened
from .errands import Errands

log = logging.getLogger("atoll.host")
MANY = 32  # budgets of one member
PART = 1 << 16  # characters from which on a letter is full; a letter up has room for four times as many


class Receipts:
    """The newest of each member's, by budget. `roots`: PEM, what members' certificates must lead to."""

    def __init__(self, errands: Errands, roots: bytes, federation: str) -> None:
        self._errands = errands
        self._roots = roots
        self._federation = federation
        self._kept: dict[str, dict[str, tuple[int, str]]] = {}
        self._told: dict[str, dict[str, list[str]]] = {}

    async def recall(self) -> None:
        """Those of earlier lives."""
        for row in await self._errands.durable(self._errands.store.receipts):
            self._kept.setdefault(row["node"], {})[row["budget"]] = row["entries"], row["text"]

    def of(self, name: str) -> list[str]:
        """A member's."""
        return [text for _, text in self._kept.get(name, {}).values()]

    def untold(self, edge: str, names: Iterable[str]) -> Iterator[dict[str, list[str]]]:
        """Those of `names` that an edge was not told since it came, in parts that fit into a letter each."""
        told = self._told.setdefault(edge, {})
        part: dict[str, list[str]] = {}
        size = 0
        for name in names:
            texts = self.of(name)
            if texts and told.get(name) != texts:
                told[name] = part[name] = texts
                size += sum(map(len, texts))
            if size >= PART:
                yield part
                part, size = {}, 0
        if part:
            yield part

    def forget(self, edge: str) -> None:
        """It has come anew, and may remember nothing."""
        self._told.pop(edge, None)

    async def take(self, said: Any, allowed: Mapping[str, Any] | None = None) -> list[str]:
        """Keep what is new of {member: [text]}; whose that was. `allowed`: whose may come this way.

        What its member has not signed, or is older than what is known, is logged and left out.
        """
        new = []
        for name, texts in said.items() if isinstance(said, Mapping) else ():
            if isinstance(texts, list) and (allowed is None or name in allowed):
                news = [await self._newer(name, text) for text in texts[:MANY]]
                new += [name] if any(news) else []
        return new

    async def _newer(self, name: str, text: Any) -> bool:
        try:
            made = opened(text, self._roots)
            if (made.member, made.federation) != (name, self._federation):
                raise ProtocolError(f"a receipt of {made.member} in another's place")
        except ProtocolError as error:
            log.warning("%s: %s", name, error)
            return False
        mine = self._kept.setdefault(name, {})
        known, _ = mine.get(made.budget, (-1, ""))
        if made.entries < known:
            older = "%s: its ledger of budget %s has %d entries, and had %d: it is an older copy"
            log.warning(older, name, made.budget, made.entries, known)
        if made.entries <= known or (made.budget not in mine and len(mine) >= MANY):
            return False
        mine[made.budget] = made.entries, text
        store = self._errands.store
        await self._errands.durable(lambda: store.receipt_keep(name, made.budget, made.entries, text))
        return True
