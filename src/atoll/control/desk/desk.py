"""What operators may ask of a federation: plain functions over the store, one for each verb.

The desk reads and writes the store and nothing else. The engine sees a queued run there and starts
it, sees one that is `stopping` and ends it; so a verb is done once its transaction is, and holds
whatever is killed afterwards. Answers are plain values that JSON can hold. An id that is not there
answers None, whoever it belongs to.

    submit ──► queued ──► running ⇄ paused ──► done | failed
                  │stop       │stop
                  ▼           ▼
               stopped    stopping ──► stopped
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import select

from ...adapt.plan import Plan
from ...adapt.plan_table import planned, travels
from ...core.errors import ConfigError
from ...learn.stop import main_metric
from .. import config
from ..store import FINAL, MAIN, STATES, Store
from ..store.schema import notes
from ..store.schema import runs as known
from .advice import advise
from .rollouts import served
from .told import Told, told
from .values import fits

SHOWN = 8  # runs on the page
ROUNDS = 400  # of one run on it
NUMBERS = range(-(2**63), 2**63)

Row: TypeAlias = dict[str, Any]
Live: TypeAlias = Mapping[str, Mapping[str, Any]]


def promised(table: Mapping[str, Any]) -> dict[str, Any]:
    """A job's values, with the noise that its promise of privacy needs: it takes seconds, and no store.

    Raises ConfigError with the path of what is wrong, PrivacyError for a sigma that is too small.
    """
    job = _file(table).job
    if job.privacy is None:
        return dict(table)
    if "sigma" in table["privacy"]:  # else it was solved for just now
        job.privacy.check(job.cohort, job.rounds)
    return {**table, "privacy": job.privacy.values()}


def _file(table: Mapping[str, Any]) -> config.JobFile:
    fits(table)
    if "world" in table:
        raise ConfigError("real machines have no simulated world: leave [world] out", "$.world")
    travels(table)
    return config.parse(table)


def keep_plan(store: Store, data: bytes) -> Row:
    """Keep a plan that a job is about to name: its sha256 and blob. Raises ProtocolError for another file."""
    plan = Plan.read(data)
    return {"sha256": plan.sha256, "blob": store.blobs.put(data)}


def submit(store: Store, table: Mapping[str, Any], seed: int | None, actor: str) -> Row:
    """Check a job and queue it; the new run. Raises ConfigError with the path of what is wrong."""
    file = _file(table)
    data = file.data.get("name")
    if not isinstance(data, str) or not data:
        raise ConfigError('name the data as the sites call them, as in data = "heart"', "$.data.name")
    seed = file.seed if seed is None else seed
    if seed not in NUMBERS:
        raise ConfigError(f"a seed has 64 bits, got {seed}", "$.seed")
    learner = planned(table) or {}
    blob = str(learner.get("blob", ""))
    if learner and (len(blob) != 64 or not store.blobs.exists(blob)):
        raise ConfigError("the job's plan is not here: send its file first", "$.learner.blob")
    if file.contract is not None:  # signing sorts the keys of a table, and columns have an order
        table = {**table, "data": {**table["data"], "contract": file.contract.table()}}
    id = store.submit(table, seed, actor, name=file.job.name)
    if blob:
        store.blobs.keep(blob, f"{id} plan")
    return run(store, id) or {}


def runs(store: Store, state: str | None = None, limit: int = 100) -> list[Row]:
    """The newest runs, queued ones with their place in the queue. Raises ConfigError for no such state."""
    if state and state not in STATES:
        raise ConfigError(f"no run is ever {state[:80]!r}: choose from {', '.join(STATES)}", "$.state")
    found = store.runs(state=state or "")
    places = _places(store)
    return [
        _run(record, _newest(store, record)) | places.get(record["id"], {}) for record in found[::-1][:limit]
    ]


def run(store: Store, id: str) -> Row | None:
    """One run with its job file's values, and the bytes of all its rounds."""
    record = _record(store, id)
    if record is None:
        return None
    so_far = told(store, id)
    place = _places(store).get(id, {})
    return {
        **_run(record, so_far.rounds),
        "up": so_far.up,
        "down": so_far.down,
        **place,
        "table": record["table"],
    }


def active(store: Store) -> list[Row]:
    """Runs that are under way."""
    found = [r for state in ("running", "paused", "stopping") for r in store.runs(state=state)]
    return [_run(record, told(store, record["id"]).rounds) for record in found]


def history(store: Store, id: str, after: int = -1, limit: int = 500) -> list[Row] | None:
    """A run's records by round, those after round `after`."""
    if _record(store, id) is None:
        return None
    return [r for r in store.history(id) if r["round"] > after][:limit]


def stop(store: Store, id: str, actor: str) -> Row | None:
    """End a run: a queued one at once, a running one after what is under way; else it stays as it is."""
    if _record(store, id) is None:
        return None
    reason = f"stopped by {actor}"
    if not store.move(id, "stopped", frm=("queued",), reason=reason, actor=actor):
        store.move(id, "stopping", frm=("running", "paused"), reason=reason, actor=actor)
    return run(store, id)


def logs(store: Store, id: str, limit: int = 500) -> list[Row] | None:
    """What sites reported about a run, newest last: site, level, text, and for failures cause and fix.

    `id` "": what was said of members and belongs to no run.
    """
    if id and _record(store, id) is None:
        return None
    return [_advised(entry) for entry in store.logs(id, limit=10**6)[-limit:]]


def nodes(store: Store, live: Live, now: float) -> list[Row]:
    """Every member: what the store knows, and what its session says at this moment.

    `live`: by name, for those connected: phase, up and down in bytes, sealed (TLS ends at a proxy). Of a
    client below an edge we see what the edge says; before it does, its phase is the edge's. `holds`: why it
    is not asked now by its own policy, {"rule", "since", "until"}, None where it may be.
    """
    found = [{**node, "models": {}} for node in store.nodes()]
    models = served(store)
    for node in found:
        node["models"] = models.get(node["name"], {})
    phases = {name: {"phase": here["phase"]} for name, here in live.items() if here.get("phase")}
    return [_node(node, live.get(node["name"]), phases.get(node["parent"], {}), now) for node in found]


def drain(store: Store, name: str, on: bool, actor: str) -> Row | None:  # noqa: FBT001
    """Give a member no new work (or work again): None where there is no such member."""
    if not _member(store, name):
        return None
    store.drain(name, on, actor)
    return {"name": name, "drained": on}


def revoke(store: Store, name: str, actor: str) -> Row | None:
    """Shut a member out, its certificates included, until it is readmitted and enrols anew."""
    if not _member(store, name):
        return None
    store.revoke(name, actor)
    return {"name": name, "revoked": True}


def readmit(store: Store, name: str, actor: str) -> Row | None:
    """Let a revoked name enrol again, with a new token; its old certificates stay refused."""
    if not _member(store, name):
        return None
    store.readmit(name, actor)
    return {"name": name, "revoked": False}


def reinstate(store: Store, name: str, actor: str) -> Row | None:
    """Nothing is held against a member any more: it takes part again, and its record begins anew."""
    if not _member(store, name):
        return None
    store.reinstate(name, actor)
    return {"name": name, "quarantined": False, "score": 0.0}


def models(store: Store, name: str | None = None, run: str | None = None) -> list[Row]:
    """Registered models, newest version first; of one name, or from one run."""
    found = [m for m in store.models(name) if run in (None, m["run"])]
    return sorted(map(_model, found), key=lambda m: (m["name"], -m["version"]))


def model(store: Store, name: str, version: str) -> Row | None:
    """One version of a model; "latest" is the newest."""
    found = [m for m in models(store, name) if version in ("latest", str(m["version"]))]
    return found[0] if found else None


def overview(store: Store, live: Live, now: float, id: str | None = None) -> Row | None:
    """What the page shows at one glance: members, the newest runs, the rounds of one of them.

    `id`: which one; by default the one at work, else the newest that began. None where it is not there.
    """
    newest = runs(store, limit=SHOWN)
    busy = (r for r in newest if r["state"] not in (*FINAL, "queued"))
    front = next(busy, next((r for r in newest if r["state"] != "queued"), {}))
    chosen = id or front.get("id")
    found = None if chosen is None else run(store, chosen)
    if id is not None and found is None:
        return None
    so_far = Told() if chosen is None else told(store, chosen)
    return {
        "now": now,
        "runs": newest,
        "nodes": nodes(store, live, now),
        "run": found,
        "rounds": so_far.rounds[-ROUNDS:],
        "sites": {"metrics": so_far.sites, "failed": so_far.failed, "suspects": so_far.suspects},
    }


def _member(store: Store, name: str) -> bool:
    return any(node["name"] == name for node in store.nodes()) or bool(store.certificates(name))


def _node(node: Row, session: Mapping[str, Any] | None, above: Row, now: float) -> Row:
    here = node["online"] if session is None else session.get("connected", True)
    state = "revoked" if node["revoked"] else "online" if here else "away"
    shown = dict(session or above) if state == "online" else {}
    way = {key: node[key] or str(shown.get(key) or "") for key in ("transport", "address")}
    ago, holds = max(0.0, now - node["last_seen"]), _holds(node["info"]) if state == "online" else None
    return {**node, **way, "state": state, "live": shown, "ago": ago, "holds": holds}


def _holds(info: Row) -> Row | None:
    """By which rule of its own a member holds back, since and until when (Unix seconds, None for unknown)."""
    power = info.get("power")
    if not isinstance(power, Mapping) or not power.get("held"):
        return None
    since, until = (power.get(key) or None for key in ("since", "until"))
    return {"rule": power.get("rule", ""), "since": since, "until": until}


def _record(store: Store, id: str) -> Row | None:
    if not id.isprintable() or not store.rows(select(known.c.id).where(known.c.id == id)):
        return None
    return store.run(id)


def _places(store: Store) -> dict[str, Row]:
    """Where each queued run stands in the queue, from 1."""
    return {r["id"]: {"place": place} for place, r in enumerate(store.runs(state="queued"), 1)}


def _newest(store: Store, record: Row) -> list[Row]:
    """The last round's record, and the last evaluated one: enough for a list of runs."""
    every = max(1, int(record["table"].get("every", 1)))
    here = (notes.c.run == record["id"], notes.c.scope == MAIN)
    found = select(notes.c.record).where(*here).order_by(notes.c.number.desc()).limit(every + 1)
    return [json.loads(row.record) for row in store.rows(found)][::-1]


def _run(record: Row, rounds: Sequence[Row]) -> Row:
    """A run in a few values; `rounds`: its last records."""
    table = record["table"]
    seen: Row = next((r["metrics"] for r in reversed(rounds) if r.get("metrics")), {})
    metric = main_metric(seen) if seen else ""
    return {
        **{key: value for key, value in record.items() if key not in ("table", "holder", "lease")},
        "learner": _part(table.get("learner", "")),
        "algorithm": _part(table.get("algorithm", "fedavg")),
        "data": _part(table.get("data", "")),
        "round": rounds[-1]["round"] if rounds else 0,
        "of": table.get("rounds", 10),
        "private": bool(table.get("privacy")),
        "metric": metric,
        "value": seen.get(metric),
    }


def _part(value: Any) -> str:
    return str(value.get("name", "")) if isinstance(value, Mapping) else str(value)


def _model(record: Row) -> Row:
    """`forms`: the blobs of its files, by form."""
    metrics = dict(record["metrics"])
    graph, _ = metrics.pop("onnx", ""), metrics.pop("tune", "")
    forms = {"safetensors": record["blob"], **({"onnx": graph} if graph else {})}
    return {**record, "metrics": metrics, "forms": forms, "manifest": _manifest(record["manifest"])}


def _manifest(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _advised(entry: Row) -> Row:
    if entry["level"] not in ("error", "refused"):
        return entry
    advice = advise(entry["text"])
    return {**entry, "cause": advice.cause, "fix": advice.fix}
