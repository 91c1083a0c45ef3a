"""What holds after every fault, in real processes and in the virtual world alike, as sentences where not.

I1 every acknowledged update is in one committed aggregate or was expired     I2 none twice
I3 model versions rise, their bytes hash to the registry's name                I4 the log verifies
I5 each round is noted once, in order                                          I6 no orphan temporary files
I7 the model has the bits of the undisturbed run
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import load

from atoll.control.store import Store


def leaves(blob: bytes) -> dict[str, bytes]:
    """A model's leaves as bytes."""
    return {name: leaf.tobytes() for name, leaf in load(blob).items()}


def broken(
    store: Store,
    run: str,
    *,
    expected: Mapping[str, bytes] | None,
    rounds: int | None = None,
    whole: bool = True,
) -> list[str]:
    """Which invariants of a finished run do not hold in the coordinator's store.

    `expected`: the undisturbed run's leaves, None where order may count. `rounds`: how many there were
    to be. `whole`: nobody may be missing in any of them but by being away for longer than is waited for;
    the model of such a run is another one.
    """
    wrong = [*aggregates(store), *chain(store), *temporary(store)]
    models = [m for m in store.models() if m["run"] == run]
    if len(models) != 1:
        return [*wrong, f"I3: {len(models)} models of one run"]
    versions = [m["version"] for m in store.models(models[0]["name"])]
    if versions != sorted(set(versions)):
        wrong.append(f"I3: versions {versions}")
    blob = store.blobs.read(models[0]["blob"])
    if hashlib.sha256(blob).hexdigest() != models[0]["blob"]:
        wrong.append("I3: the model's bytes are not those of its name")
    history = store.history(run)
    if rounds is not None and [r["round"] for r in history] != list(range(rounds + 1)):
        wrong.append(f"I5: rounds {[r['round'] for r in history]}")
    out = [why for r in history for key in ("failed", "sites_failed") for why in (r.get(key) or {}).values()]
    if whole and any("away for" not in why for why in out):
        wrong.append(f"I1: somebody was left out: {out}")
    if expected is not None and not out and leaves(blob) != expected:
        wrong.append("I7: the model has other bits than the undisturbed run's")
    return wrong


def aggregates(store: Store, *, withdrawn: bool = False) -> list[str]:
    """I1 and I2 over the events of a store: each recorded answer in one closed request, once.

    `withdrawn`: an edge's, whose parent may end a request before its children have all answered.
    """
    answered: Counter[tuple[str, str, int, str]] = Counter()
    closed: dict[tuple[str, str, int], tuple[list[str], dict[str, str]]] = {}
    wrong = []
    for event in store.events(0, 10**6):
        body, run = event["body"], event["run"]
        match event["kind"]:
            case "dropped":  # its answer is with the parent, or nobody wants it; asked again, it begins anew
                scope = (run, body["scope"])
                answered = Counter({key: n for key, n in answered.items() if key[:2] != scope})
                closed = {key: end for key, end in closed.items() if key[:2] != scope}
            case "answered":
                answered[run, body["scope"], body["request"], event["node"]] += 1
            case "closed":
                key = (run, body["scope"], body["request"])
                if key in closed:
                    wrong.append(f"I2: {key} closed twice")
                closed[key] = body["replied"], body["missing"]
    wrong += [f"I2: {key} was recorded {count} times" for key, count in answered.items() if count > 1]
    for run, where, request, node in answered:
        if withdrawn and (run, where, request) not in closed:
            continue
        replied, missing = closed.get((run, where, request), ([], {}))
        if replied.count(node) + (node in missing) != 1:
            wrong.append(f"I1: the answer of {node} to {where}.{request} is not in one aggregate")
    return wrong


def chain(store: Store) -> list[str]:
    """I4."""
    verdict = store.verify()
    return [] if verdict.ok else [f"I4: {verdict.fault}"]


def temporary(store: Store) -> list[str]:
    """I6, once the store was opened: that is when it sweeps."""
    return [f"I6: {path.relative_to(store.folder)}" for path in (store.folder / "blobs").rglob("*.part")]


def settled(folder: Path) -> list[str]:
    """Of a member that still runs: no half-written files beside its answers and models."""
    found = [path for name in ("answers", "models", "runs") for path in (folder / name).glob("*.part")]
    return [f"I6: {path}" for path in found]
