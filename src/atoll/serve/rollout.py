"""The roll-out of one model at one node: who is champion, who is tried, and when that changes.

    shadow ─► canary ─► all ─► served         a candidate on its way: compared, a share, everybody, champion
       └─────────┴────────┴──► back           a gate failed, or the operator ordered it

    shadow  answers nobody; both models answer copies of requests, off the path of answers
    canary  answers a share of requests, chosen by a hash of their tickets
    all     answers all; the champion is kept, and takes over again if a gate fails

Pure: line, what happened, now -> line, what to do. A line is a small record, on disk before it is acted on.
There is one champion whatever happens, and it answers for a candidate that breaks. Versions rise, except by
a signed order; order numbers only rise.

Stopping a candidate needs proof (evidence.py: tests that hold however often one looks, from 32 requests on);
going on needs `least` requests and every limit kept by what was seen. Who is between the two after ten times
as many is taken back as well: nobody stays on trial for ever.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from ..core.errors import ProtocolError
from ..privacy.orders import STAGES, Order, Stage
from .evidence import Evidence, Pair, over, stopped

LONG = 10  # times `least`: by then a candidate has proved itself, or is taken back
STARTS = 3  # of the process while one candidate is tried, with fewer answers in between: it ends the process
KEPT = 16  # versions that were taken back, remembered with the reason
_ALIVE = 20  # requests compared: the process lives with it


class Candidate(msgspec.Struct, frozen=True):
    """A version on trial. `since`: when its stage began, Unix seconds; `starts`: of the process after it was
    killed, since some requests were last compared; `alive`: how many had been at that time.
    """

    version: int
    order: Order
    stage: Stage
    since: float
    seen: Evidence = Evidence()
    starts: int = 0
    alive: int = 0


class Line(msgspec.Struct, frozen=True):
    """One name at one node. `champion`: the version served, 0 before the first; `newest`: what the next one
    must exceed; `number`: of the last order obeyed; `back`: versions taken back here, with the reason.
    """

    champion: int = 0
    newest: int = 0
    number: int = 0
    candidate: Candidate | None = None
    back: dict[int, str] = {}


class Move(NamedTuple):
    """What became of a version: shadow, canary, all, served or back, and why."""

    version: int
    stage: str
    reason: str = ""


def accepted(
    line: Line, version: int, order: Order | None, takes_back: int, now: float
) -> tuple[Line, Move | None]:
    """A signed model came, its bytes being good. Without an order it is served at once.

    Raises ProtocolError for a version that does not rise, or an order that was followed by others.
    """
    if order is None:
        _rises(line, version, takes_back)
        return _served(line, version, takes_back, "")
    if order.number <= line.number:
        raise ProtocolError(
            f"order {order.number} came, and {line.number} was obeyed already: an older order is refused"
        )
    if order.stage == "held":
        raise ProtocolError(f"version {version} is registered and not rolled out: atoll model rollout does")
    line = replace(line, number=order.number)
    if version in line.back and not order.again:
        return line, Move(version, "back", line.back[version])
    trial = line.candidate
    if version == line.champion:
        return _served(line, version, takes_back, order.reason)
    if trial is None or trial.version != version:
        _rises(line, version, takes_back, order)
    if not line.champion or takes_back or (order.stage == "all" and order.gates.open):
        return _served(line, version, takes_back, order.reason)
    back = {v: why for v, why in line.back.items() if v != version}
    fresh = Candidate(version, order, order.stage, now)
    line = replace(line, candidate=fresh, newest=max(line.newest, version), back=back)
    return line, Move(version, fresh.stage, order.reason)


def compared(line: Line, version: int, pair: Pair, now: float) -> tuple[Line, Move | None]:
    """Both models have answered a request."""
    trial = line.candidate
    if trial is None or trial.version != version:
        return line, None  # it is over, and this comes late
    trial = replace(trial, seen=trial.seen.compared(pair, trial.order.gates))
    if trial.seen.n >= trial.alive + _ALIVE:
        trial = replace(trial, starts=0, alive=trial.seen.n)
    return _judged(replace(line, candidate=trial), now)


def labelled(line: Line, version: int, worse: float, rows: int, now: float) -> tuple[Line, Move | None]:
    """The truth about a request that was compared; see Evidence.judged."""
    trial = line.candidate
    if trial is None or trial.version != version:
        return line, None
    seen = trial.seen.judged(worse, rows, trial.order.gates)
    return _judged(replace(line, candidate=replace(trial, seen=seen)), now)


def dropped(line: Line, version: int, requests: int) -> Line:
    """So many requests were not compared: the machine was busy."""
    trial = line.candidate
    if trial is None or trial.version != version:
        return line
    seen = replace(trial.seen, dropped=trial.seen.dropped + requests)
    return replace(line, candidate=replace(trial, seen=seen))


def broke(line: Line, version: int, reason: str) -> tuple[Line, Move | None]:
    """The candidate failed on rows that the champion answers: one such request is proof."""
    trial = line.candidate
    return (line, None) if trial is None or trial.version != version else _back(line, reason)


def refused(line: Line, version: int, order: Order, reason: str) -> tuple[Line, Move]:
    """An ordered model cannot be used here: it is as if it had been tried and taken back."""
    trial = line.candidate
    kept = None if trial is not None and trial.version == version else trial
    back = _few({**line.back, version: reason})
    line = Line(line.champion, max(line.newest, version), order.number, kept, back)
    return line, Move(version, "back", reason)


def started(line: Line, now: float) -> tuple[Line, Move | None]:
    """The process begins anew: whoever is not confirmed answers at most its share again."""
    trial = line.candidate
    if trial is None:
        return line, None
    if trial.starts >= STARTS:
        return _back(line, f"the process ended {trial.starts} times while it was tried")
    trial = replace(trial, starts=trial.starts + 1)
    if trial.stage == "all" and trial.order.share:
        trial = replace(trial, stage="canary", since=now, seen=Evidence(), alive=0)
    return replace(line, candidate=trial), Move(trial.version, trial.stage)


def ended(line: Line) -> Line:
    """The process ends as it was told to: that speaks against nobody."""
    return line if line.candidate is None else replace(line, candidate=replace(line.candidate, starts=0))


def gives(line: Line, name: str, ticket: str) -> bool:
    """Whether the candidate answers the request with this ticket: the same for the same ticket."""
    trial = line.candidate
    if trial is None or trial.stage == "shadow":
        return False
    return trial.stage == "all" or share_of(name, trial.version, ticket) < trial.order.share


def share_of(name: str, version: int, ticket: str) -> float:
    """A number in [0, 1) that a ticket has for a version, uniform over tickets."""
    digest = hashlib.sha256(f"{name}\n{version}\n{ticket}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def told(line: Line) -> dict[str, Any]:
    """For whoever watches the fleet: the champion's `version`, the last `order` obeyed, and the version on
    `trial` with its `stage`, or the newest with "back" and the `reason`, or none with "served".
    """
    found = {"version": line.champion, "order": line.number}
    if line.candidate is not None:
        return {**found, "trial": line.candidate.version, "stage": line.candidate.stage, "reason": ""}
    if line.newest in line.back:
        return {**found, "trial": line.newest, "stage": "back", "reason": line.back[line.newest]}
    return {**found, "trial": 0, "stage": "served", "reason": ""}


def _judged(line: Line, now: float) -> tuple[Line, Move | None]:
    """Back, on, or as it is."""
    trial = line.candidate
    assert trial is not None  # noqa: S101  who calls has one
    gates, seen = trial.order.gates, trial.seen
    if why := stopped(seen, gates):
        return _back(line, why)
    need = trial.order.shadow if trial.stage == "shadow" else gates.least
    n = seen.n if trial.stage == "shadow" else seen.given
    if n < need or now - trial.since < trial.order.stay or seen.labelled < gates.labels:
        return line, None
    if why := over(seen, gates):
        return _back(line, f"{why}, still after {n} requests") if n >= LONG * need else (line, None)
    if trial.stage == trial.order.until:
        return (line, None) if trial.stage != "all" else _served(line, trial.version, 0, "")
    stage = STAGES[STAGES.index(trial.stage) + 1]
    if stage == "canary" and not trial.order.share:
        stage = "all"
    trial = replace(trial, stage=stage, since=now, seen=Evidence(), alive=0)
    return replace(line, candidate=trial), Move(trial.version, stage)


def _rises(line: Line, version: int, takes_back: int, order: Order | None = None) -> None:
    known = order is not None and (version == line.newest or (order.again and version in line.back))
    if not (version > line.newest or known or line.newest <= takes_back):
        raise ProtocolError(f"version {version} came, and {line.newest} was here: it only rises")


def _served(line: Line, version: int, takes_back: int, reason: str) -> tuple[Line, Move]:
    """It is the champion; whoever it takes the place of by an order to go back is out."""
    trial = line.candidate
    out = {v for v in (line.champion, trial.version if trial else 0) if version < v <= takes_back}
    if trial is not None and version == line.champion:
        out.add(trial.version)
    why = reason or f"version {version} was ordered"
    back = {v: told for v, told in line.back.items() if v != version} | dict.fromkeys(sorted(out), why)
    newest = max(line.newest, version, takes_back)
    return Line(version, newest, line.number, None, _few(back)), Move(version, "served", reason)


def _back(line: Line, reason: str) -> tuple[Line, Move]:
    trial = line.candidate
    assert trial is not None  # noqa: S101  who calls has one
    back = _few({**line.back, trial.version: reason})
    return replace(line, candidate=None, back=back), Move(trial.version, "back", reason)


def _few(back: dict[int, str]) -> dict[int, str]:
    return {v: back[v][:500] for v in sorted(back)[-KEPT:]}
