"""What a finished run leaves: its model in the registry, signed, as safetensors and, if it can be, ONNX."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...core.errors import AtollError, StateError
from ...core.update import Update
from ...privacy.keys import Identity, sign_model
from ...serve.model import Model, named
from ...wire.codec import Message
from ...wire.failpoint import declare, hit
from ...wire.tensorfile import save_safetensors
from ..settings import rollout
from ..store.store import Store
from . import tuning
from .parcels import write_frames
from .work import Work
from .work import signed as signed_job

log = logging.getLogger("atoll.coordinator")
NEAR = 1e-4  # between a model as ONNX and its source, of the largest answer where that is above 1
_EXPORTED, _STORED = declare("finished.exported"), declare("finished.stored")
_ADDED = declare("finished.added")


def register(
    store: Store,
    identity: Identity,
    run: str,
    work: Work,
    params: Update,
    history: Sequence[Mapping[str, Any]],
    how: Any = "now",
) -> None:
    """Keep the model under the job's name, for members as `how` says: a setting or a job's `rollout`.

    The manifest signs the ONNX bytes where there are any: they are what clients run. Where they are not to be
    served at once, it says so, and an order of its own has them served.
    """
    with tempfile.TemporaryDirectory(dir=store.spool) as folder:
        file = Path(folder) / "model.safetensors"
        save_safetensors(params, file)
        with file.open("rb") as plain:
            blob = hashlib.file_digest(plain, "sha256").hexdigest()
        graph = _onnx(work, params, Path(folder) / "model.onnx")
        hit(_EXPORTED)
        store.blobs.adopt(file, blob, head=False)
    hit(_STORED)
    name = slug(work.job.name)
    signed: dict[str, Any] = {
        "federation": identity.member.federation,
        "run": run,
        "name": name,
        "sha256": blob if graph is None else hashlib.sha256(graph).hexdigest(),
        "created": time.time(),
    }

    plan = rollout(how)
    if how != "now":
        signed["order"] = {"number": 1, "stage": "held"}

    def manifest(version: int) -> bytes:
        return sign_model(identity.key, identity.chain, {**signed, "version": version})

    last: Mapping[str, Any] = next((r["metrics"] for r in reversed(history) if r.get("metrics")), {})
    parcel = base = ""
    if graph is not None:
        parcel = write_frames(store, Message("model", {}, {"onnx": np.frombuffer(graph, np.uint8)}))
        store.blobs.keep(parcel, f"onnx {run}")
        base = write_frames(store, tuning.parcel(work, signed_job(work.values, identity), params, identity))
        store.blobs.keep(base, f"tune {run}")
    with store.batch():
        version = store.model_add(run, name, blob, manifest, {**last, "onnx": parcel, "tune": base})
        known = any(order["version"] == version for order in store.orders(name))
        if plan is not None and graph is not None and not known:
            store.order_add(name, version, "rollout", msgspec.to_builtins(plan), "coordinator")
    hit(_ADDED)


def slug(name: str) -> str:
    """A job's name as a model's: lower-case letters, digits, dots and dashes."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63]
    return plain or "model"


def _agrees(work: Work, params: Update, graph: bytes, raw: NDArray[np.float32]) -> None:
    """Raises StateError where the graph answers raw rows otherwise than its source; where it can be run here.

    A learner that has no `answers` of its own compares when it exports (adapt/torch_plan.py).
    """
    if find_spec("onnxruntime") is None or not hasattr(work.learner, "answers"):
        return
    got = Model(graph).run(raw)
    rows = raw if work.pipeline is None else work.pipeline.rows(raw)
    for name, want in work.learner.answers(params, rows).items():
        if want.dtype.kind != "f":
            continue  # classes follow from scores, and two that are equal may come in either order
        far, scale = float(np.abs(got[name] - want).max()), max(1.0, float(np.abs(want).max()))
        if not far <= NEAR * scale:
            raise StateError(f"its {name} differ from its source's by {far:.2g}: it is not served")


def _onnx(work: Work, params: Update, path: Path) -> bytes | None:
    """The model as ONNX, checked against its source; None where this learner or installation cannot."""
    if not hasattr(work.learner, "export"):
        return None
    features = work.values["features"]
    shape = tuple(features) if isinstance(features, list) else (features,)
    if work.pipeline is not None:
        shape = (*shape[:-1], len(work.pipeline.names))
    rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    try:
        work.learner.export(params, path, rows)
        graph = path.read_bytes()
        if work.pipeline is not None:
            graph = work.pipeline.frozen(graph)
            size = (8, *shape[:-1], len(work.pipeline.steps))
            rows = np.random.default_rng(0).normal(size=size).astype(np.float32)
        graph = named(graph, work.classes)
        _agrees(work, params, graph, rows)
        return graph
    except (AtollError, ImportError) as error:
        log.warning("run %s has no ONNX: %s", work.run, error)
        return None
