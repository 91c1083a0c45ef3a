"""What the chain tells about rows: a row that says otherwise was altered behind the store's back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from . import schema as t
from .plain import digest, parsed
from .runs import FINAL

_Group = tuple[str, ...]  # a table, or one scope's part of it
_Key = tuple[Any, ...]
_RUN = ("state", "seed", "name", "reason", "created", "started", "ended")
_LIVE = ("role", "parent", "address", "version", "transport", "info")


class _Any:
    """What an event of an earlier version, or one that was trimmed away, does not tell: equal to all."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


_ANY = _Any()


class _Rows(defaultdict[_Group, dict[_Key, Any]]):
    """What rows say by group and key, as told so far. `whole`: from the first event there was."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__(dict)
        self.whole = whole
        self.lenient = True  # about certificates that ended: earlier versions forgot them without an event
        self.now = 0.0  # the last event's time


class Told:
    """Fed with every event in order, then compared with the rows.

    `whole`: the chain begins with the first event there was; rows it does not tell of are wrong then.
    """

    def __init__(self, *, whole: bool) -> None:
        self._rows = _Rows(whole=whole)
        self._odd = ""

    def tell(self, event: Any) -> None:
        """The next event."""
        kind, _, what = event["kind"].partition(".")
        self._rows.now = max(self._rows.now, event["at"])
        if told := _TOLD.get(event["kind"]) or _TOLD.get(kind):
            try:
                told(self._rows, event, parsed(event["body"]), what)
            except (LookupError, TypeError, ValueError, AttributeError):
                said = f"event {event['seq']} ({event['kind']}) tells nothing that was written"
                self._odd = self._odd or said

    def fault(self, conn: Connection) -> str:
        """The first row that does not say what the chain tells, in words; empty if all do."""
        if self._odd:
            return self._odd
        left = {(group, key): row for group, rows in self._rows.items() for key, row in rows.items()}
        for group, key, row in _rows(conn):
            told = left.pop((group, key), None)
            if told != row and (told is not None or self._rows.whole):
                return f"{_named(group, key)} was altered: its events tell otherwise"
        missing = [at for at, row in left.items() if not self._forgotten(at[0], row)]
        return f"{_named(*missing[0])} is missing: events tell of it" if missing else ""

    def _forgotten(self, group: _Group, row: Any) -> bool:
        return group == ("certificate",) and self._rows.lenient and row[2] < self._rows.now


def _run(rows: _Rows, event: Any, body: Any, what: str) -> None:
    key, found = (event["run"],), rows["run",]
    if what == "submitted":
        row = {"state": "queued", "seed": body["seed"], "job": body["job"], "name": body["name"]}
        found[key] = {**row, "reason": "", "created": event["at"], "started": None, "ended": None}
    elif what not in ("leased", "report") and key in found:
        row = found[key] = {**found[key], "state": what, "reason": body["reason"]}
        if what == "running":
            row["started"] = event["at"] if row["started"] is None else row["started"]
        if what in FINAL:
            row["ended"] = event["at"]


def _asked(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    rows["ask", event["run"], body["scope"]][body["request"],] = (body["detail"], 0, [], {})


def _closed(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    key, found = (body["request"],), rows["ask", event["run"], body["scope"]]
    if key in found:
        found[key] = (found[key][0], event["seq"], body["replied"], body["missing"])


def _answered(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    answer = event["seq"], body["blob"], body["reason"], body["info"]
    rows["answer", event["run"], body["scope"]][body["request"], event["node"]] = answer


def _note(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    rows["note", event["run"], body["scope"]][body["number"],] = (body["record"],)


def _checkpoint(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    place = event["run"], body["scope"]
    first, keep = body["requests"], set(body.get("keep", ()))
    for table in ("ask", "answer"):
        kept = {k: row for k, row in rows[table, *place].items() if k[0] >= first or k[0] in keep}
        rows[table, *place] = kept
    rows["scope", *place][()] = (body["blob"], body["requests"], body["notes"])


def _dropped(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    for table in ("ask", "answer", "note", "scope"):
        rows.pop((table, event["run"], body["scope"]), None)


def _model(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    said = event["run"], body["blob"], body["manifest"], body.get("metrics", _ANY), event["at"]
    rows["model",][body["model"], body["version"]] = said


def _order(rows: _Rows, _event: Any, body: Any, what: str) -> None:
    key, found = (body["model"], body["order"]), rows["order",]
    if what in ("rollout", "promote", "rollback"):
        state = "open" if what == "rollout" else "done"
        found[key] = (body["version"], what, body["plan"], digest(""), state, 0)
    elif key in found:
        *head, manifest, state, wave = found[key]
        told = {"signed": "manifest", "ended": "state", "wave": "wave"}[what]
        now = {"manifest": manifest, "state": state, "wave": wave, told: body[told]}
        found[key] = (*head, *now.values())


def _stage(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    said = (body[key] for key in ("version", "trial", "stage", "number", "reason"))
    rows["stage",][event["node"], body["model"]] = tuple(said)


def _token(rows: _Rows, event: Any, body: Any, what: str) -> None:
    key, found = (body["token"],), rows["token",]
    if what == "added":
        found[key] = (body["role"], event["node"], body["until"], False, False, "")
    elif what == "revoked" and key in found:
        found[key] = (*found[key][:3], True, *found[key][4:])
    elif what == "used" and key in found:
        found[key] = (*found[key][:4], True, body.get("by", _ANY))


def _certificate(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    rows["certificate",][body["serial"],] = (event["node"], body["role"], body["until"], False)


def _receipt(rows: _Rows, event: Any, body: Any, _what: str) -> None:
    rows["receipt",][event["node"], body["budget"]] = (body["entries"], body.get("text", _ANY))


def _seen(rows: _Rows, event: Any, body: Any, what: str) -> None:
    key, found = (event["node"],), rows["node",]
    if what == "seen":
        new = {"first_seen": event["at"], "drained": False} if rows.whole else {}
        before = found.get(key, {"first_seen": _ANY, "drained": _ANY, **new})
        found[key] = {**before, **{name: body.get(name, _ANY) for name in _LIVE}}
    elif key in found:
        found[key] = {**found[key], "drained": what == "drained"}


def _node(rows: _Rows, event: Any, body: Any, what: str) -> None:
    if what in ("seen", "drained", "undrained"):
        _seen(rows, event, body, what)
    elif what == "revoked":
        rows["ban",][event["node"],] = ()
        found = rows["certificate",]
        for key in [(serial,) for serial in body["serials"] if (serial,) in found]:
            found[key] = (*found[key][:3], True)
    elif what == "readmitted":
        rows["ban",].pop((event["node"],), None)
    elif what in ("quarantined", "reinstated"):
        kept, _ = rows["record",].get((event["node"],), ("", False))
        out = what == "quarantined"
        rows["record",][event["node"],] = (kept if out else digest("{}"), out)


def _judged(rows: _Rows, _event: Any, body: Any, _what: str) -> None:
    for name, record in body["records"].items():
        _, out = rows["record",].get((name,), ("", False))
        rows["record",][name,] = (record, out)


def _pruned(rows: _Rows, _event: Any, body: Any, _what: str) -> None:
    gone = set(body["runs"])
    for group in [group for group in rows if len(group) > 1 and group[1] in gone]:
        del rows[group]
    for table, keys in (("run", body["runs"]), ("token", body["tokens"])):
        for key in keys:
            rows[table,].pop((key,), None)
    if "before" in body:
        found = rows["certificate",]
        rows["certificate",] = {k: row for k, row in found.items() if row[2] >= body["before"]}
        rows.lenient = False


_TOLD = {
    "run": _run,
    "asked": _asked,
    "closed": _closed,
    "answered": _answered,
    "note": _note,
    "checkpoint": _checkpoint,
    "dropped": _dropped,
    "model": _model,
    "order": _order,
    "stage": _stage,
    "token": _token,
    "certificate": _certificate,
    "budget": _receipt,
    "node": _node,
    "judged": _judged,
    "pruned": _pruned,
}


def _named(group: _Group, key: _Key) -> str:
    rest = "/".join(str(part)[:64] for part in (*group[1:], *key))
    return f"the row of {group[0]} {rest}"


def _rows(conn: Connection) -> Iterator[tuple[_Group, _Key, Any]]:
    for r in conn.execute(select(t.runs).order_by(t.runs.c.number)):
        said = {name: r._mapping[name] for name in _RUN}
        yield ("run",), (r.id,), {**said, "job": digest(r.job)}
    for q in conn.execute(select(t.asks)):
        row = digest(q.detail), q.closed, parsed(q.replied), parsed(q.missing)
        yield ("ask", q.run, q.scope), (q.request,), row
    for a in conn.execute(select(t.answers).order_by(t.answers.c.seq)):
        row = a.seq, a.blob, a.reason, digest(a.info)
        yield ("answer", a.run, a.scope), (a.request, a.peer), row
    for n in conn.execute(select(t.notes)):
        yield ("note", n.run, n.scope), (n.number,), (digest(n.record),)
    for s in conn.execute(select(t.scopes)):
        yield ("scope", s.run, s.scope), (), (s.state, s.requests, s.notes)
    for m in conn.execute(select(t.models)):
        made = m.run, m.blob, digest(m.manifest), digest(m.metrics), m.created
        yield ("model",), (m.name, m.version), made
    yield from _rolled_out(conn)
    yield from _members(conn)


def _members(conn: Connection) -> Iterator[tuple[_Group, _Key, Any]]:
    for k in conn.execute(select(t.tokens)):
        row = k.role, k.name, k.until, k.revoked, k.used is not None, k.used_by
        yield ("token",), (k.digest,), row
    for c in conn.execute(select(t.certificates)):
        yield ("certificate",), (c.serial,), (c.name, c.role, c.until, c.revoked)
    for n in conn.execute(select(t.nodes)):
        said = {name: n._mapping[name] for name in (*_LIVE, "first_seen", "drained")}
        yield ("node",), (n.name,), {**said, "info": digest(n.info)}
    for b in conn.execute(select(t.bans.c.name)):
        yield ("ban",), (b.name,), ()
    for r in conn.execute(select(t.records)):
        yield ("record",), (r.name,), (digest(r.record), r.quarantined)
    for b in conn.execute(select(t.receipts)):
        yield ("receipt",), (b.node, b.budget), (b.entries, digest(b.text))


def _rolled_out(conn: Connection) -> Iterator[tuple[_Group, _Key, _Key]]:
    for o in conn.execute(select(t.orders)):
        row = o.version, o.kind, digest(o.plan), digest(o.manifest), o.state, o.wave
        yield ("order",), (o.name, o.number), row
    for s in conn.execute(select(t.stages)):
        yield ("stage",), (s.node, s.name), (s.version, s.trial, s.stage, s.number, s.reason)
