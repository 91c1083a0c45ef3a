"""What the chain tells about rows: a row that says otherwise was altered behind the store's back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from . import schema as t
from .plain import digest, parsed

_Group = tuple[str, ...]  # a table, or one scope's part of it
_Key = tuple[Any, ...]


class Told:
    """Fed with every event in order, then compared with the rows.

    `whole`: the chain begins with the first event there was; rows it does not tell of are wrong then.
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._rows: defaultdict[_Group, dict[_Key, _Key]] = defaultdict(dict)

    def tell(self, event: Any) -> None:
        """The next event."""
        kind, _, what = event["kind"].partition(".")
        if told := _TOLD.get(event["kind"]) or _TOLD.get(kind):
            told(self._rows, event, parsed(event["body"]), what)

    def fault(self, conn: Connection) -> str:
        """The first row that does not say what the chain tells, in words; empty if all do."""
        left = {(group, key): row for group, rows in self._rows.items() for key, row in rows.items()}
        for group, key, row in _rows(conn):
            told = left.pop((group, key), None)
            if told != row and (told is not None or self._whole):
                return f"{_named(group, key)} was altered: its events tell otherwise"
        return f"{_named(*next(iter(left)))} is missing: events tell of it" if left else ""


def _run(rows: Any, event: Any, body: Any, what: str) -> None:
    key, found = (event["run"],), rows["run",]
    if what == "submitted":
        found[key] = ("queued", body["seed"], body["job"])
    elif what != "leased" and key in found:
        found[key] = (what, *found[key][1:])


def _answered(rows: Any, event: Any, body: Any, _what: str) -> None:
    answer = event["seq"], body["blob"], body["reason"], body["info"]
    rows["answer", event["run"], body["scope"]][body["request"], event["node"]] = answer


def _note(rows: Any, event: Any, body: Any, _what: str) -> None:
    rows["note", event["run"], body["scope"]][body["number"],] = (body["record"],)


def _checkpoint(rows: Any, event: Any, body: Any, _what: str) -> None:
    place = event["run"], body["scope"]
    answers = rows["answer", *place]
    first, keep = body["requests"], set(body.get("keep", ()))
    rows["answer", *place] = {k: row for k, row in answers.items() if k[0] >= first or k[0] in keep}
    rows["scope", *place][()] = (body["blob"], body["requests"], body["notes"])


def _dropped(rows: Any, event: Any, body: Any, _what: str) -> None:
    for table in ("answer", "note", "scope"):
        rows.pop((table, event["run"], body["scope"]), None)


def _model(rows: Any, event: Any, body: Any, _what: str) -> None:
    rows["model",][body["model"], body["version"]] = (event["run"], body["blob"], body["manifest"])


def _order(rows: Any, _event: Any, body: Any, what: str) -> None:
    key, found = (body["model"], body["order"]), rows["order",]
    if what in ("rollout", "promote", "rollback"):
        state = "open" if what == "rollout" else "done"
        found[key] = (body["version"], what, body["plan"], digest(""), state, 0)
    elif key in found:
        *head, manifest, state, wave = found[key]
        told = {"signed": "manifest", "ended": "state", "wave": "wave"}[what]
        now = {"manifest": manifest, "state": state, "wave": wave, told: body[told]}
        found[key] = (*head, *now.values())


def _stage(rows: Any, event: Any, body: Any, _what: str) -> None:
    said = (body[key] for key in ("version", "trial", "stage", "number", "reason"))
    rows["stage",][event["node"], body["model"]] = tuple(said)


def _token(rows: Any, event: Any, body: Any, what: str) -> None:
    key, found = (body["token"],), rows["token",]
    if what == "added":
        found[key] = (body["role"], event["node"], body["until"], False)
    elif what == "revoked" and key in found:
        found[key] = (*found[key][:3], True)


def _node(rows: Any, event: Any, _body: Any, what: str) -> None:
    if what == "revoked":
        rows["ban",][event["node"],] = ()
    elif what == "readmitted":
        rows["ban",].pop((event["node"],), None)
    elif what in ("quarantined", "reinstated"):
        kept, _ = rows["record",].get((event["node"],), ("", False))
        out = what == "quarantined"
        rows["record",][event["node"],] = (kept if out else digest("{}"), out)


def _judged(rows: Any, _event: Any, body: Any, _what: str) -> None:
    for name, record in body["records"].items():
        _, out = rows["record",].get((name,), ("", False))
        rows["record",][name,] = (record, out)


def _pruned(rows: Any, _event: Any, body: Any, _what: str) -> None:
    gone = set(body["runs"])
    for group in [group for group in rows if len(group) > 1 and group[1] in gone]:
        del rows[group]
    for table, keys in (("run", body["runs"]), ("token", body["tokens"])):
        for key in keys:
            rows[table,].pop((key,), None)


_TOLD = {
    "run": _run,
    "answered": _answered,
    "note": _note,
    "checkpoint": _checkpoint,
    "dropped": _dropped,
    "model": _model,
    "order": _order,
    "stage": _stage,
    "token": _token,
    "node": _node,
    "judged": _judged,
    "pruned": _pruned,
}


def _named(group: _Group, key: _Key) -> str:
    rest = "/".join(str(part)[:64] for part in (*group[1:], *key))
    return f"the row of {group[0]} {rest}"


def _rows(conn: Connection) -> Iterator[tuple[_Group, _Key, _Key]]:
    for r in conn.execute(select(t.runs).order_by(t.runs.c.number)):
        yield ("run",), (r.id,), (r.state, r.seed, digest(r.job))
    for a in conn.execute(select(t.answers).order_by(t.answers.c.seq)):
        row = a.seq, a.blob, a.reason, digest(a.info)
        yield ("answer", a.run, a.scope), (a.request, a.peer), row
    for n in conn.execute(select(t.notes)):
        yield ("note", n.run, n.scope), (n.number,), (digest(n.record),)
    for s in conn.execute(select(t.scopes)):
        yield ("scope", s.run, s.scope), (), (s.state, s.requests, s.notes)
    for m in conn.execute(select(t.models)):
        yield ("model",), (m.name, m.version), (m.run, m.blob, digest(m.manifest))
    yield from _rolled_out(conn)
    for k in conn.execute(select(t.tokens)):
        yield ("token",), (k.digest,), (k.role, k.name, k.until, k.revoked)
    for b in conn.execute(select(t.bans.c.name)):
        yield ("ban",), (b.name,), ()
    for r in conn.execute(select(t.records)):
        yield ("record",), (r.name,), (digest(r.record), r.quarantined)


def _rolled_out(conn: Connection) -> Iterator[tuple[_Group, _Key, _Key]]:
    for o in conn.execute(select(t.orders)):
        row = o.version, o.kind, digest(o.plan), digest(o.manifest), o.state, o.wave
        yield ("order",), (o.name, o.number), row
    for s in conn.execute(select(t.stages)):
        yield ("stage",), (s.node, s.name), (s.version, s.trial, s.stage, s.number, s.reason)
