"""Asks that are open, and answers as they come: through the gate, onto the disk, into the sum.

    put ─► letter "ask" ─► upload ─► offered ─► uploaded: gate, blob, journal, hub ─► receipt

An answer is believed once the gate has looked at it and acknowledged once it is on disk. The same
upload gives the same receipt however often it comes, and through whichever life of this process.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.edge import LOST, UNASKED
from ...core.errors import Gone, MisuseError, ProtocolError, Refused
from ...learn.failure import HELD, NOT_LET_IN
from ...transport.drive import Drive
from ...transport.link import ALONG
from ...transport.service import Offer
from ...wire.failpoint import declare, hit
from ..gate.gate import Gate
from ..gate.want import Want
from .errands import Errands
from .kept import plain_kept

_SPOOLED, _GATED = declare("host.spooled"), declare("host.gated")
_ADOPTED, _RECEIPT = declare("host.adopted"), declare("host.receipt")
CARRIED = ("params", "plan")  # blobs that an ask names
RECEIPTS = 10_000  # remembered in memory; older ones are looked up
REASONS = 100  # of clients' failures in one answer that are logged
QUIET = ("", "deadline", "not needed", UNASKED)  # reasons that are nobody's own words


@dataclass(slots=True)
class Sent:
    """An ask that some members have yet to answer: what each was sent, and what it may answer."""

    drive: Drive
    request: int
    run: str
    letters: dict[str, dict[str, Any]] = field(default_factory=dict)
    wants: dict[str, Want] = field(default_factory=dict)
    until: float | None = None


class Asks:
    """The table of open asks, by id: run, scope and request. `send(name, kind, head)`: a letter.

    `life`: names this process in its asks, for after a backup was restored an ask may go out twice.
    `models`: letters that say which model to serve, by its name. `live`: bytes each member sent and got.
    `bases`: models, with the files of those before them. `thin`: models that moved in few numbers.
    """

    def __init__(self, errands: Errands, gate: Gate, send: Callable[..., Any]) -> None:
        self.errands = errands
        self.gate = gate
        self.send = send
        self.life = secrets.token_hex(8)
        self.open: dict[str, Sent] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.bases: dict[str, Mapping[str, Path]] = {}
        self.thin: set[str] = set()
        self.live: dict[str, dict[str, Any]] = {}
        self._receipts: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._counting: set[str] = set()  # uploads that get a receipt in a moment
        self._held: Counter[str] = Counter()
        self._promised: dict[str, float] = {}

    async def recall(self, patience: float) -> bool:
        """What an earlier life of this process had asked will be asked again, within `patience` seconds;
        whether that is anything.
        """
        until = asyncio.get_running_loop().time() + patience
        for run, scope, request in await self.errands.durable(self.errands.store.open_asks):
            self._promised[f"{run}.{scope}.{request}"] = until
        return bool(self._promised)

    def put(self, ask: str, sent: Sent, peer: str, letter: dict[str, Any], asked: Want) -> Sent:
        """An ask goes out to a member, now or when it comes."""
        self._promised.pop(ask, None)
        self._receipts.pop(f"{ask}.{peer}", None)  # of the same ask before it was dropped and came again
        kept = self.open.setdefault(ask, sent)
        kept.letters[peer] = letter
        kept.wants[peer] = asked
        self.say(ask, kept, peer)
        return kept

    def say(self, ask: str, sent: Sent, peer: str) -> None:
        """Tell a member what it is asked, with the time that is left."""
        left = -1.0 if sent.until is None else max(0.0, sent.until - asyncio.get_running_loop().time())
        letter = sent.letters[peer]
        head = {**letter, "ask": ask, "left": left, "life": self.life}
        self.send(peer, "ask", head, self._small(str(letter.get("params", ""))))

    def _small(self, blob: str) -> str:
        """This model, if it goes along with the letter that asks: not where what has changed is less."""
        if blob in self.thin:
            return ""
        with suppress(MisuseError, FileNotFoundError):
            if self.errands.store.blobs.path(blob).stat().st_size <= ALONG:
                return blob
        return ""

    def of(self, name: str) -> list[tuple[str, Sent]]:
        """What this member has yet to answer."""
        return [(ask, sent) for ask, sent in self.open.items() if name in sent.letters]

    def fail(self, name: str, reason: str) -> None:
        """This member answers nothing any more."""
        for _, sent in self.of(name):
            self.errands.spawn(sent.drive.failed(sent.request, name, reason))

    async def refused(self, name: str, ask: str, reason: str, life: str) -> None:
        """A member said no to an ask of this `life`, or of one it does not name, as earlier minor versions do
        not; `reason` is its own words.
        """
        sent = self.open.get(ask)
        if sent is not None and name in sent.letters and life in ("", self.life):
            await self.errands.log(sent.run, name, "error", reason)
            await sent.drive.failed(sent.request, name, reason)

    def busy(self) -> dict[str, str]:
        """Members that have something to answer, and of which run."""
        return {peer: sent.run for sent in self.open.values() for peer in sent.letters}

    def _count(self, name: str, way: str, size: int) -> None:
        told = self.live.setdefault(name, {"up": 0, "down": 0, "phase": "idle", "run": ""})
        told[way] += size

    def withdraw(self, ask: str, peers: Sequence[str]) -> None:
        """These members need not answer any more."""
        sent = self.open.get(ask)
        if sent is None:
            return
        for peer in peers:
            upload = f"{ask}.{peer}"
            if sent.letters.pop(peer, None) and upload not in self._receipts and upload not in self._counting:
                self.send(peer, "cancel", {"ask": ask})
            sent.wants.pop(peer, None)
        if not sent.letters:
            del self.open[ask]

    def hold(self, blob: str) -> None:
        """Somebody may fetch this blob, which no row in SQL names, until it is released as often."""
        self._held[blob] += 1
        self.errands.store.blobs.hold(blob)

    def release(self, blob: str) -> None:
        """It is needed once less; a blob that nobody needs goes."""
        self._held[blob] -= 1
        if self._held[blob] <= 0:
            del self._held[blob]
            self.bases.pop(blob, None)
            self.thin.discard(blob)
            blobs = self.errands.store.blobs
            blobs.let_go(blob)  # at once: whoever holds it from here on keeps it
            self.errands.spawn(self.errands.durable(lambda: blobs.superfluous([blob])))

    def _find(self, name: str, upload: str) -> tuple[str, Sent]:
        ask = upload.removesuffix(f".{name}")
        sent = self.open.get(ask)
        if sent is None:
            self._soon(ask)
        if ask == upload or sent is None or name not in sent.wants:
            raise Refused("nobody waits for this answer: its request is over, or was never yours")
        return ask, sent

    def _soon(self, ask: str = "") -> None:
        """Raise Gone if this ask of an earlier life, or any, will be asked again in a moment."""
        now = asyncio.get_running_loop().time()
        self._promised = {a: until for a, until in self._promised.items() if until > now}
        if ask in self._promised or (not ask and self._promised):
            raise Gone("this server has just started and goes on with its runs: try again in a moment")

    async def offered(self, name: str, upload: str) -> Offer:
        """Where an expected answer is spooled, and its largest size."""
        _, sent = self._find(name, upload)
        spooled = self.errands.store.spool / hashlib.sha256(upload.encode()).hexdigest()
        return Offer(spooled, sent.wants[name].size)

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        """Through the gate, onto the disk, into the sum; then the receipt."""
        before = await self.receipt(name, upload)
        if before is not None:
            return before
        _, sent = self._find(name, upload)
        names = sent.letters[name].get("names", {})
        hit(_SPOOLED)
        self._count(name, "up", path.stat().st_size + len(head))  # noqa: ASYNC240  no time
        try:
            checked = await self.gate.check(sent.wants[name], head, path)
        except ProtocolError as error:
            await self.errands.log(sent.run, name, "refused", f"{NOT_LET_IN}{error}")
            await sent.drive.failed(sent.request, name, f"{NOT_LET_IN}{error}")
            raise
        hit(_GATED)
        blob = hashlib.sha256(head).hexdigest()
        await self.errands.work(lambda: self.errands.store.blobs.adopt(path, blob, head=False))
        hit(_ADOPTED)
        info = {"checked": plain_kept(checked)}
        self._counting.add(upload)
        try:
            counted = await sent.drive.answered(sent.request, name, blob=blob, info=info)
        finally:
            self._counting.discard(upload)
        if counted and checked.values.failed:
            who = {client: below for below, client in names.items()}
            await self._said(sent.run, [(who.get(c, name), why) for c, why in checked.values.failed])
        hit(_RECEIPT)
        return self._keep(upload, counted=counted)

    async def _said(self, run: str, failed: Sequence[tuple[str, str]]) -> None:
        """Log why clients failed that an answer speaks for: below an edge nobody else hears of it."""
        told = [(c, why) for c, why in failed if why not in QUIET and LOST not in why and HELD not in why]
        if not told:
            return
        store = self.errands.store

        def keep() -> None:
            with store.batch():
                for client, why in told[:REASONS]:
                    store.log_add(run, client, "refused" if why.startswith(NOT_LET_IN) else "error", why)
                if (more := len(told) - REASONS) > 0:
                    store.log_add(run, "", "warning", f"{more} more clients failed: see the round's record")

        await self.errands.durable(keep)

    def _keep(self, upload: str, *, counted: bool) -> dict[str, Any]:
        receipt = {"upload": upload, "counted": counted}
        self._receipts[upload] = receipt
        if len(self._receipts) > RECEIPTS:
            self._receipts.popitem(last=False)
        return receipt

    async def receipt(self, name: str, upload: str) -> dict[str, Any] | None:
        """The receipt of an answer kept before, in this life or an earlier one."""
        known = self._receipts.get(upload)
        if known is not None or not upload.endswith(f".{name}"):
            return known
        ask = upload.removesuffix(f".{name}")
        sent = self.open.get(ask)
        if sent is not None and sent.drive.waits(sent.request, name):
            return None  # what the journal holds of an open request, its drive knows
        run, _, rest = ask.partition(".")
        scope, _, request = rest.rpartition(".")
        if not request.isdigit():
            return None
        journal = self.errands.store.journal(run, scope)
        kept = await self.errands.durable(lambda: journal.answer(int(request), name))
        return self._keep(upload, counted=True) if kept is not None and kept.blob else None

    def blob(self, name: str, blob: str) -> Path | None:
        """The model or plan of an ask this member has yet to answer, or one it is to serve."""
        mine = {s.letters[name].get(k) for s in self.open.values() if name in s.letters for k in CARRIED}
        if blob in mine or blob in {m.get(k) for m in self.models.values() for k in ("blob", "tune")}:
            path = self.errands.store.blobs.path(blob)
            return path if path.exists() else None
        self._soon()
        return None

    def base(self, old: str, blob: str, *, slow: bool) -> Path | None:
        """The file of a model before this one, which members were asked with or can make, if a delta pays: on
        a `slow` link, or where models move in few numbers.
        """
        return self.bases.get(blob, {}).get(old) if slow or blob in self.thin else None

    def sends(self, name: str, size: int) -> None:
        """So much goes to this member."""
        self._count(name, "down", size)
