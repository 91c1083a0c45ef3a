"""The watch of a client: each window is answered by the model that serves, and what drifts is renewed.

    window ─► the shelf's model ─► monitor ─► triggers ─► quota ─► workplace: fine-tune ─► challenge ─► own
    model
                                      └─► letter "watch": figures            └─► letter "watch": a federated
                                      run

    folder/watch/state       what is known, written whole after each window and before each deed; sealed
    folder/watch/rows/N      windows not forgotten yet; sealed
    folder/watch/base/...    what to fine-tune: the federation's model as its run left it
    folder/watch/own/...     this node's own model and, written last, what it was made of; sealed

Where rows are windows of one device (sense/history.py), the model answers these, and is renewed and compared
on them; drift is looked for in each one's newest reading alone. Its other columns are the same series, moved:
a reading would be counted once for each of them, a change told as often as a window is long, each time a step
later, and the monitor's state would be as many times as large.

A node that is killed goes on where its state says. A fine-tune that was under way then has spent what it had
reserved, and is over; the model that serves is the last that was wholly written.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...core.errors import AtollError, Refused, StateError
from ...privacy.vault import Vault
from ...serve import challenge, monitor, quota, triggers
from ...serve.drift.event import Event
from ...serve.model import Model
from ...serve.models import Shelf
from ...serve.quota import Amount
from ...serve.triggers import Start, What
from ...wire.failpoint import declare, hit
from ...wire.files import whole
from ..settings import Client, histories
from .answered import errors, losses, said
from .recent import Rows

log = logging.getLogger("atoll.client")
_STATE = declare("watch.state.before"), declare("watch.state.after")
_ROWS = declare("watch.rows.after")
_RESERVED = declare("watch.reserved")
_TUNED = declare("watch.tuned")
_OWN = declare("watch.own.before"), declare("watch.own.model"), declare("watch.own.after")
TOLD = 32  # events that are told again to a parent that was away
JOB = "renew"  # the name under which a quota holds what is under way


class Window(Protocol):
    """`rows`: (n, *row) float32; a row is a reading, or a window of one device, (size, *reading). `labels`:
    (n,) float64, NaN for none, or None. `cursor`: of the next.
    """

    @property
    def rows(self) -> NDArray[np.float32]:
        """Of the window, in their order."""

    @property
    def labels(self) -> NDArray[np.float64] | None:
        """Of its rows."""

    @property
    def cursor(self) -> int:
        """Where the next one begins."""


class Labelled(Window, Protocol):
    """Rows whose labels came later, each by itself."""

    @property
    def tickets(self) -> tuple[str, ...]:
        """Of each row: what its prediction was asked with, where somebody asked."""


class Tune(Protocol):
    """Fine-tune `base` on `rows` into `to`; what it took. Raises as tuning.tune."""

    async def __call__(
        self, base: Path, rows: Path, to: Path, values: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """See engine/workplace.py."""


class Whose(msgspec.Struct, frozen=True):
    """A model: the federation's version, and this node's own count, 0 for the federation's itself."""

    name: str = ""
    version: int = 0
    own: int = 0


class Told(NamedTuple):
    """An event, and its number at this node."""

    number: int
    event: Event


class Known(msgspec.Struct, frozen=True):
    """The state. `asked`: the version for which a federated run is asked for, 0 for none. `heard`: the
    cursor of labels that came later, `heard_windows` where rows are windows of devices. `rows`: that of the
    newest file of rows.
    """

    cursor: int = 0
    whose: Whose = Whose()
    monitor: monitor.State | None = None
    triggers: triggers.State = triggers.State()
    quota: quota.State = quota.State()
    told: tuple[Told, ...] = ()
    number: int = 0
    own: int = 0
    asked: int = 0
    heard: int = 0
    heard_windows: int = 0
    rows: int | None = None


class Watch:
    """`send(kind, head)`: a letter to the parent. `tune`: the workplace's. `clock`: Unix seconds. `names`: of
    a row's columns, where they have some.
    """

    def __init__(
        self,
        settings: Client,
        vault: Vault,
        shelf: Shelf,
        tune: Tune,
        send: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.time,
        names: tuple[str, ...] = (),
    ) -> None:
        assert settings.watch is not None  # noqa: S101  who makes it has looked
        self._watch, self._renew = settings.watch, settings.renew
        self._names, self._histories = names, bool(histories(settings))
        self._folder = Path(settings.folder) / "watch"
        self._vault, self._shelf, self._tune, self._send, self._clock = vault, shelf, tune, send, clock
        self._working: asyncio.Task[None] | None = None
        self._turn = threading.RLock()  # windows and deeds come from several threads, the state is one
        for name in ("rows", "base", "own"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self.known = self._read()

    # -- what comes in ----------------------------------------------------------------------------

    async def run(
        self,
        windows: Callable[[int], AsyncIterator[Window]],
        labelled: Callable[[int], AsyncIterator[Labelled]] | None = None,
    ) -> None:
        """Take windows, from where the state says, for ever; and labels, where they come later."""
        await asyncio.to_thread(self.begin)
        if labelled is not None:
            await asyncio.gather(self._windows(windows), self._labels(labelled))
        else:
            await self._windows(windows)

    async def _windows(self, windows: Callable[[int], AsyncIterator[Window]]) -> None:
        async for window in windows(self.known.cursor):
            await self.take(window)

    async def _labels(self, labelled: Callable[[int], AsyncIterator[Labelled]]) -> None:
        known = self.known
        async for lot in labelled(known.heard_windows if self._histories else known.heard):
            await self.hear(lot)

    def begin(self) -> None:
        """Serve this node's own model again; end what was under way when the last life ended."""
        self._serve_own()
        self._drop_early()
        known = self.known
        if known.triggers.open:
            held = known.quota.open.get(JOB, Amount())
            self._write(quota=quota.settle(known.quota, JOB, held, self._clock()))
            self._over(won=False, why="the node was stopped at it")

    async def take(self, window: Window) -> None:
        """Look at a window; begin what it is a reason for."""
        start = await asyncio.to_thread(self._took, window)
        if start is not None:
            self._begin(start)

    async def hear(self, lot: Labelled) -> None:
        """Labels came for rows that were answered before; begin what that is a reason for."""
        start = await asyncio.to_thread(self._heard, lot)
        if start is not None:
            self._begin(start)

    async def idle(self) -> None:
        """Wait until nothing is being renewed."""
        while self._working is not None and self.renewing:
            await asyncio.wait([self._working])

    @property
    def renewing(self) -> bool:
        """Whether a model is being renewed."""
        return self._working is not None and not self._working.done()

    async def stop(self) -> None:
        """End what is under way."""
        if self._working is not None:
            self._working.cancel()
            with suppress(asyncio.CancelledError):
                await self._working

    def lacks(self, name: str, version: int) -> bool:
        """Whether it would keep what this version can be fine-tuned from, and does not have it."""
        wanted = self._renew is not None and self._watch.model in ("", name)
        return wanted and not self._base(name, version).exists()

    def based(self, name: str, version: int, file: Path) -> None:
        """Keep what a version of a model can be fine-tuned from: a parcel (tuning.py)."""
        if self._watch.model in ("", name):
            place = self._base(name, version)
            with whole(place) as out, file.open("rb") as source:
                while piece := source.read(1 << 20):
                    out.write(piece)
            for other in place.parent.glob("*.parcel"):
                if other != place:
                    other.unlink()

    def report(self) -> None:
        """Say how things stand, to a parent that may not know."""
        self._say()

    # -- a window ---------------------------------------------------------------------------------

    def _took(self, window: Window) -> Start | None:
        with self._turn:
            return self._looked(window)

    def _looked(self, window: Window) -> Start | None:
        now, served = self._clock(), self._shelf.get(self._watch.model)
        at, known = {"cursor": window.cursor, "rows": self._keep(window)}, self.known
        if served is None:
            self._write((), **at)
            return None
        whose = Whose(served.name, served.version, served.own)
        try:
            answers = served.model.run(np.asarray(window.rows, np.float32))
        except StateError as error:
            log.warning("a window was not answered: %s", error)
            self._write((), **at)
            return None
        newest, answered = self._newest(window), said(answers)
        wrong = None if window.labels is None else errors(answers, window.labels)
        if window.cursor < known.cursor:  # the readings were wiped, and what was usual with them
            known = msgspec.structs.replace(known, monitor=None)
        state = self._monitor(known, whose, newest, answers)
        seen = monitor.Seen(newest, answered, wrong)
        state, events = monitor.seen(state, seen, now, self._watch)
        table, start = known.triggers, None
        if self._renew is not None:
            what = What(drift=bool(state.raised), rows=len(window.rows))
            table, start = triggers.happened(table, self._renew, what, now)
        asked = known.asked if served.version == known.asked else 0
        self._write(events, **at, whose=whose, monitor=state, triggers=table, asked=asked)
        return start

    def _newest(self, window: Window) -> NDArray[np.float32]:
        """The readings that are looked at."""
        return window.rows[:, -1] if self._histories else window.rows

    def _monitor(
        self, known: Known, whose: Whose, newest: NDArray[np.float32], answers: Mapping[str, NDArray[Any]]
    ) -> monitor.State:
        """What is known of this model's windows; begun where there were none."""
        state = known.monitor
        if state is not None and known.whose == whose:
            return state
        if state is not None and (known.whose.name, known.whose.version) == (whose.name, whose.version):
            return monitor.renewed(state)
        wide = int(np.prod(newest.shape[1:]))
        named = len(self._names) == wide
        names = self._names if named else tuple(f"column {i}" for i in range(wide))
        names += tuple(f"answer {i}" for i in range(said(answers).shape[1]))
        return monitor.begun(names, values="label" not in answers)

    def _heard(self, lot: Labelled) -> Start | None:
        """What the model that serves says of these rows is compared with the truth; a model on trial hears
        it where the rows were asked for.
        """
        labels = np.asarray(lot.labels, np.float64)
        for ticket, label in zip(lot.tickets, labels.tolist(), strict=True):
            if np.isfinite(label):
                self._shelf.feedback(self._watch.model, ticket, [label])
        with self._turn:
            now, served, known = self._clock(), self._shelf.get(self._watch.model), self.known
            at = {"heard_windows" if self._histories else "heard": lot.cursor, "rows": self._keep(lot)}
            whose, state, table, start = known.whose, known.monitor, known.triggers, None
            events: tuple[Event, ...] = ()
            if served is not None:
                try:
                    answers = served.model.run(np.asarray(lot.rows, np.float32))
                    mine = Whose(served.name, served.version, served.own)
                    state = self._monitor(known, mine, self._newest(lot), answers)
                    state, events = monitor.heard(state, errors(answers, labels), now, self._watch)
                    whose = mine
                except StateError as error:
                    log.warning("labels came for rows that are not answered: %s", error)
            if state is not None and self._renew is not None and not state.errors_later:  # a verdict
                table, start = triggers.happened(table, self._renew, What(drift=bool(state.raised)), now)
            asked = known.asked if whose.version == known.asked else 0
            self._write(events, **at, whose=whose, monitor=state, triggers=table, asked=asked)
            return start

    # -- renewing ---------------------------------------------------------------------------------

    def _begin(self, start: Start) -> None:
        self._working = asyncio.get_running_loop().create_task(self._renewed(start))

    async def _renewed(self, start: Start | None) -> None:
        while start is not None:
            won, why = False, ""
            figures: dict[str, float] = {}
            try:
                if start.action == "ask":
                    won, why = await asyncio.to_thread(self._asked, start)
                else:
                    won, why, figures = await self._tuned(start)
            except AtollError as error:
                why = str(error)
            except OSError as error:
                why = f"the disk does not take it: {error.strerror}"
            start = await asyncio.to_thread(self._over, won=won, why=why, figures=figures)

    def _over(self, *, won: bool, why: str, figures: Mapping[str, float] = {}) -> Start | None:
        """It is over: what the triggers say to that, on disk."""
        assert self._renew is not None  # noqa: S101  somebody began it
        with self._turn:
            known, now = self.known, self._clock()
            table, start = triggers.ended(known.triggers, self._renew, now, won=won)
            what = known.triggers.open
            kind = {"ask": "asked", "tune": "renewed"}.get(what, "") if won else "kept"
            event = Event(kind, what, why, now, figures=dict(figures))
            held = quota.settle(known.quota, JOB, known.quota.open.get(JOB, Amount()), now)
            self._write((event,), triggers=table, quota=held)
        return start

    def _asked(self, start: Start) -> tuple[bool, str]:
        """Ask for a federated run, within the quota; the letter is sent again until a newer version comes."""
        assert self._renew is not None  # noqa: S101  as above
        version = self.known.whose.version
        if self.known.asked != version:
            refused = self._reserve(self._renew.run)
            if refused:
                return False, refused
            self._write(asked=version)
        return True, ", ".join(start.why)

    def _reserve(self, need: Amount) -> str:
        """Set it aside, on disk when this returns; why not, "" where it was."""
        assert self._renew is not None  # noqa: S101  as above
        with self._turn:
            held, refused = quota.reserve(self.known.quota, self._renew.quota, JOB, need, self._clock())
            self._write(quota=held)
        hit(_RESERVED)
        return refused

    async def _tuned(self, start: Start) -> tuple[bool, str, dict[str, float]]:
        """Fine-tune, compare, and serve what won."""
        assert self._renew is not None  # noqa: S101  as above
        name, version = self.known.whose.name, self.known.whose.version
        base, now = self._base(name, version), self._clock()
        if not base.exists():
            raise Refused(f"what {name} {version} can be fine-tuned from has not come from the coordinator")
        rows, held = await asyncio.to_thread(self._split)
        free = quota.left(self.known.quota, self._renew.quota, now)
        watts = self._renew.watts
        minutes = min((start.until - now) / 60, free.cpu_minutes, free.energy_wh * 60 / max(watts, 1e-9))
        refused = self._reserve(Amount(cpu_minutes=minutes, energy_wh=minutes * watts / 60))
        if refused:
            raise Refused(refused)
        source, to = self._folder / "own" / "rows", self._folder / "own" / "challenger"
        await asyncio.to_thread(self._vault.write, source, msgspec.msgpack.encode(Rows.of(*rows)))
        values: dict[str, Any] = {"seconds": minutes * 60, "seed": self.known.number}
        values |= {"passes": self._renew.passes, "reach": self._renew.reach}
        values["run"] = await asyncio.to_thread(self._shelf.run, name)
        try:
            async with asyncio.timeout(max(0.0, start.until - now)):
                took = await self._tune(base, source, to, values)
        except TimeoutError:
            raise Refused("it took longer than it may") from None
        finally:
            source.unlink(missing_ok=True)
        hit(_TUNED)
        spent = float(took["cpu_seconds"]) / 60
        joules, source = float(took.get("joules", 60 * spent * watts)), took.get("source", "estimate")
        used = Amount(cpu_minutes=spent, energy_wh=joules / 3600)
        with self._turn:
            self._write(quota=quota.settle(self.known.quota, JOB, used, self._clock()))
        judge = partial(self._challenged, to, held, fills=bool(took["fills"]))
        won, why, figures = await asyncio.to_thread(judge)
        return won, why, {**figures, "cpu_seconds": 60 * spent, f"joules_{source}": joules}

    def _challenged(
        self, to: Path, held: tuple[Any, Any], *, fills: bool
    ) -> tuple[bool, str, dict[str, float]]:
        assert self._renew is not None  # noqa: S101  as above
        whose, served = self.known.whose, self._shelf.get(self.known.whose.name)
        data = self._vault.read(to)
        to.unlink()
        if served is None or served.version != whose.version:
            return False, "another version serves by now", {}
        x, y = held
        if not fills:
            whole = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
            x, y = x[whole], y[whole]
        both = [model.run(x) for model in (served.model, Model(data, whose.name))]
        old, new = (losses(answers, y) for answers in both)
        verdict = challenge.judged(old, new, y, self._renew.terms, classes="label" in both[0])
        found = {"rows": float(verdict.rows), "p": verdict.p}
        found |= {"champion": verdict.champion, "challenger": verdict.challenger}
        figures = {name: value for name, value in found.items() if np.isfinite(value)}
        if verdict.won:
            self._swap(whose, data)
        return verdict.won, verdict.why, figures

    # -- the node's own model ---------------------------------------------------------------------

    def _swap(self, whose: Whose, data: bytes) -> None:
        """Serve it from now on: its file, then the record that names it, then in memory."""
        number = self.known.own + 1
        hit(_OWN[0])
        file = self._folder / "own" / f"{number}.onnx"
        self._vault.write(file, data)
        hit(_OWN[1])
        own = Whose(whose.name, whose.version, number)
        self._vault.write(self._folder / "own" / "record", msgspec.msgpack.encode(own))
        hit(_OWN[2])
        self._shelf.own(whose.name, whose.version, number, data)
        self._write(own=number)
        for other in file.parent.glob("*.onnx"):
            if other != file:
                other.unlink()

    def _serve_own(self) -> None:
        """What the last life swapped in, if the federation's version it was made of serves still."""
        folder = self._folder / "own"
        try:
            own = msgspec.msgpack.decode(self._vault.read(folder / "record"), type=Whose)
            data = self._vault.read(folder / f"{own.own}.onnx")
            self._shelf.own(own.name, own.version, own.own, data)
        except FileNotFoundError:
            return
        except (StateError, msgspec.DecodeError) as error:
            log.warning("this node's own model is not served: %s", error)
            return
        self._write(own=max(own.own, self.known.own))

    def _base(self, name: str, version: int) -> Path:
        return self._folder / "base" / f"{name}-{version}.parcel"

    # -- rows -------------------------------------------------------------------------------------

    def _keep(self, window: Window) -> int | None:
        """The window's labelled rows, on disk until `recent` newer ones are; the newest file's cursor."""
        if self._renew is None or window.labels is None:
            return self.known.rows
        known = np.isfinite(window.labels)
        x, y = np.asarray(window.rows, np.float32)[known], np.asarray(window.labels)[known]
        sound = ~np.isinf(x.reshape(len(x), -1)).any(axis=1)  # what is missing a pipeline may fill
        if not sound.any():
            return self.known.rows
        data = msgspec.msgpack.encode(Rows.of(x[sound], y[sound]))
        self._vault.write(self._folder / "rows" / f"{window.cursor:016}.{int(sound.sum())}", data)
        hit(_ROWS)
        left = self._renew.recent
        for file in self._files():
            if left <= 0:
                file.unlink(missing_ok=True)  # a wipe takes them, too
            left -= int(file.suffix[1:])
        return window.cursor

    def _drop_early(self) -> None:
        """Rows that were kept and not looked at when the last life ended: they come again."""
        newest = self.known.rows
        for file in self._files():
            if newest is not None and int(file.stem) > newest:
                file.unlink()

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted((f for f in (self._folder / "rows").iterdir() if f.suffix[1:].isdigit()), reverse=True)

    def _split(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Rows to learn from, and the newest, to compare on."""
        assert self._renew is not None  # noqa: S101  as above
        found = [
            msgspec.msgpack.decode(self._vault.read(file), type=Rows).examples(classes=False)
            for file in reversed(self._files())
        ]
        if not found:
            raise Refused("no labelled rows came yet: there is nothing to learn from")
        x, y = (np.concatenate([getattr(part, name) for part in found]) for name in ("x", "y"))
        at = len(x) - max(1, round(self._renew.held * len(x)))
        return (x[:at], y[:at]), (x[at:], y[at:])

    # -- the state --------------------------------------------------------------------------------

    def _read(self) -> Known:
        try:
            return msgspec.msgpack.decode(self._vault.read(self._folder / "state"), type=Known)
        except FileNotFoundError:
            return Known(rows=0)
        except (StateError, msgspec.DecodeError) as error:
            log.warning("what this node knew of its watch is lost: %s", error)
            return Known()

    def _write(self, events: tuple[Event, ...] = (), **change: Any) -> None:
        """Whole, before anybody hears of it or acts on it."""
        with self._turn:
            self._written(events, **change)

    def _written(self, events: tuple[Event, ...], **change: Any) -> None:
        known = msgspec.structs.replace(self.known, **change)
        if events:
            told = (*known.told, *(Told(known.number + i + 1, e) for i, e in enumerate(events)))[-TOLD:]
            known = msgspec.structs.replace(known, told=told, number=known.number + len(events))
        if known == self.known:
            return
        hit(_STATE[0])
        self._vault.write(self._folder / "state", msgspec.msgpack.encode(known))
        hit(_STATE[1])
        self.known = known
        if events or "asked" in change:
            self._say()

    def _say(self) -> None:
        known = self.known
        state = known.monitor
        self._send(
            "watch",
            {
                "source": self._watch.source,
                "model": {"name": known.whose.name, "version": known.whose.version, "own": known.whose.own},
                "raised": [] if state is None else list(state.raised),
                "score": 0.0 if state is None else state.score,
                "asked": known.asked,
                "events": [{"number": n, **msgspec.to_builtins(event)} for n, event in known.told],
            },
        )
