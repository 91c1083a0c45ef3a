"""A life of a store as a list of steps, and what must be true of it wherever it was cut.

`live(store, seed, told)` makes a run from its beginning or goes on with it, as a role would after a
restart: it asks the store how far it got, and repeats whatever it cannot know it did. `told(line)`
is called after each step that returned: the acknowledgement. `sight(store)` is all that counts of
the outcome; it must not depend on where the life was cut, or how often.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from atoll.control.store import Store
from atoll.control.store.records import Standing
from atoll.core.errors import StateError

ROUNDS, PEERS = 3, ("a", "b", "c")
Told = Callable[[str], None]


def live(store: Store, seed: int, told: Told) -> None:
    draw = random.Random(seed)
    runs = store.runs()
    run = runs[0]["id"] if runs else store.submit({"rounds": ROUNDS}, seed, "ann")
    told(f"submit {run}")
    store.move(run, "running", frm=("queued",), actor="me")
    store.run_lease(run, "me", store.clock() + 60)
    journal = store.journal(run)
    began = journal.resume()
    for r in range(began.requests, ROUNDS):
        _round(store, journal, r, draw, told)
    edge = store.journal(run, "edge/0")
    edge.asked(0, {})
    edge.answered(0, "x", reason="no data")
    edge.drop()
    store.prune(0, 100, older=0)
    blob = store.blobs.put(b"model" * 100)
    version = store.model_add(run, "m", blob, b"manifest")
    told(f"model {version}")
    people(store, told)
    rolled(store, told)
    store.prune(0, 100, keep_events_days=0, older=0)
    told("pruned")
    store.run_reported(run, "signed")
    store.move(run, "done", frm=("running",))
    told("done")


def _round(store: Store, journal: Any, r: int, draw: random.Random, told: Told) -> None:
    journal.asked(r, {"round": r})
    told(f"asked {r}")
    for peer in PEERS:
        blob = _uploaded(store, update(r, peer), draw.random() < 0.5)
        with suppress(StateError):  # closed, before the cut
            journal.answered(r, peer, blob=blob, info={"r": r})
        told(f"answered {r} {peer} {blob}")
    journal.closed(r, PEERS[:2], {"c": "late"})
    told(f"closed {r}")
    journal.note(r, {"round": r})
    told(f"note {r}")
    journal.checkpoint(f"state {r}".encode() * 99, r + 1, r + 1)
    told(f"checkpoint {r + 1}")


def update(r: int, peer: str) -> bytes:
    return f"{r}{peer}".encode() * 900  # more than a sector


def _uploaded(store: Store, data: bytes, spooled: bool) -> str:
    if not spooled:
        return store.blobs.put(data)
    name = data.hex().ljust(64, "0")[:64]
    path = store.spool / name
    for at, content in ((path, data), (path.with_name(name + ".head"), b"head")):
        with store.files.create(at) as file:
            file.write(content)
    store.blobs.adopt(path, name)
    return name


def people(store: Store, told: Told) -> None:
    with suppress(StateError):
        store.token_add("d" * 64, "client", "b", 2e9)
    told("token")
    assert store.token_use("d" * 64, 1.0, "key") == ("client", "b")
    told("used")
    store.node_seen("a", "client", {"version": "1"})
    store.certificate_add(7, "a", "client", 2e9)
    store.drain("a", True)
    store.node_gone("a")
    store.noticed("a", 1, "raised", {"what": "error"})
    store.revoke("a")
    told("revoked")
    store.readmit("a")
    shown = {"a": Standing({"rounds": 3}, 1.0, store.records().get("a", {}).get("cleared", 0))}
    store.judged("r", shown, ["a"])
    told("judged")
    store.reinstate("a")
    store.judged("r", {"b": Standing({"rounds": 3}, 1.0)}, ["b"])
    store.receipt_keep("a", "rows", 1, "signed")
    store.blobs.keep(store.model("m")["blob"], "me")
    store.log_add("r", "a", "info", "hello")
    with store.batch():
        store.log_add("r", "a", "info", "hello")
        store.log_add("r", "a", "info", "hello")
    store.blobs.release(store.model("m")["blob"], "me")
    with suppress(StateError):
        store.token_add("e" * 64, "viewer", "ann", 2e9)
    store.token_revoke("e" * 64)
    store.seal(lambda payload: payload[::-1])


def rolled(store: Store, told: Told) -> None:
    """A roll-out that goes to all, and one that is replaced by an order to go back."""
    for version in (1, 2):
        if len(store.orders("m")) < 2 * version - 1:
            store.order_add("m", version, "rollout", {"first": 0.5}, "ann")
        number = 2 * version - 1
        store.order_signed("m", number, lambda n=number: b"order %d" % n)
        told(f"order {number}")
        store.order_wave("m", number, 1)
        said = {"version": 1, "trial": version, "stage": "canary", "number": number, "reason": ""}
        store.staged("a", "m", said)
        store.staged("a", "m", {**said, "figures": {"compared": 9}})
        if version == 1:
            store.order_ended("m", number, "done")
        if len(store.orders("m")) < 2 * version:
            store.order_add("m", 1, "rollback" if version == 2 else "promote", {}, "ann", "it is worse")
        told(f"order {number + 1}")


def sight(store: Store) -> Any:
    """All of the outcome but times and event numbers."""
    (run,) = store.runs()
    journal = store.journal(run["id"])
    kept = journal.resume()
    model = store.model("m")
    return [
        run["state"],
        run["rounds"],
        store.history(run["id"]),
        (kept.state, kept.requests, kept.notes, kept.answers),
        (model["version"], store.blobs.read(model["blob"])),
        [(t["role"], t["used_by"], t["revoked"]) for t in store.tokens()],
        [(n["name"], n["drained"], n["online"], n["revoked"]) for n in store.nodes()],
        [(name, r["score"], r["quarantined"]) for name, r in store.records().items()],
        sorted(map(str, store.revoked())),
        store.receipts(),
        [(o["number"], o["kind"], o["state"], o["wave"], o["manifest"]) for o in store.orders()],
        [(s["node"], s["trial"], s["stage"], s["figures"]) for s in store.stages()],
        sorted(store.blobs.names()),
    ]


def holds(store: Store, told: list[str]) -> None:
    """Every acknowledgement is kept, and nothing contradicts itself."""
    verdict = store.verify()
    assert verdict.ok, verdict.fault
    assert not list((store.blobs.folder / "tmp").glob("*"))
    lines = [line.split() for line in told]
    runs = store.runs()
    assert len(runs) <= 1
    for _, run in (line for line in lines if line[0] == "submit"):
        assert runs[0]["id"] == run
    if not runs:
        return
    journal = store.journal(runs[0]["id"])
    found = journal.resume()
    answers = {(a.request, a.peer): a.blob for a in found.answers}
    assert len(answers) == len(found.answers)
    for (request, peer), name in answers.items():
        assert store.blobs.read(name) == update(request, peer)
    for request, closed in found.closed.items():
        assert set(closed.replied) <= {peer for r, peer in answers if r == request}
    held = found.requests
    kept: dict[str, Callable[[int, str], bool]] = {
        "checkpoint": lambda n, _: held >= n,
        "note": lambda n, _: {"round": n} in store.history(journal.run),
        "asked": lambda n, _: n < held or n in found.asked,
        "closed": lambda n, _: n < held or n in found.closed,
        "answered": lambda n, peer: n < held or (n, peer) in answers,
        "model": lambda n, _: store.model("m")["version"] == n == 1,
        "order": lambda n, _: len(store.orders("m")) >= n,
        "done": lambda _n, _p: runs[0]["state"] == "done",
    }
    for what, *rest in lines:
        number, peer, *_ = [*rest, "0", ""]
        if what in kept:
            assert kept[what](int(number), peer), f"{what} {rest} was acknowledged, and is lost"
