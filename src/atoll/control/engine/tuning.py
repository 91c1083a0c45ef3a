"""The workplace's part of renewing: the federation's model, trained on a site's own recent rows within its
time.

The new model lies part of the way from the federation's to what local training makes of it (learn/within.py).
Each begins at the federation's version and never at an earlier own one, so that own models do not wander off.

    base    a parcel of kind "tune": the signed job, the params, and the coordinator's word that they belong
    rows    sealed: the site's recent rows and labels
    to      sealed: the new model as ONNX
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...adapt.plan_table import planned
from ...core.errors import CodecError, IntegrityError, ProtocolError, Refused
from ...core.rng import Rng
from ...core.update import Update
from ...data.examples import Examples
from ...learn.within import Budget, Tuned, fine_tune_within, toward
from ...learn.wrapped import Wrapped
from ...privacy.keys import Identity, sign, verify
from ...privacy.vault import Vault
from ...wire.codec import Message
from ..settings import Policy
from . import plans
from .parcels import read_frames
from .recent import Rows
from .work import Work, opened

PURPOSE = "atoll tune"
PIECES = 20  # of a pass: between two of them the time is looked at
LEAST = 50  # rows of a piece, and to learn from at all


def parcel(work: Work, letter: Mapping[str, Any], params: Update, identity: Identity) -> Message:
    """What a coordinator gives to clients that may fine-tune its run's model."""
    created = time.time()
    signature = sign(identity.key, _belong(work, params, created), purpose=PURPOSE)
    word = {"signature": signature, "chain": identity.chain, "created": created}
    arrays: dict[str, Any] = {"params": params}
    if work.plan is not None:
        arrays["plan"] = plans.carried(work.plan)
    return Message("tune", {"job": dict(letter), "word": word}, arrays)


def _belong(work: Work, params: Update, created: float) -> bytes:
    digest = hashlib.sha256(np.ascontiguousarray(params.buffer).tobytes()).hexdigest()
    return json.dumps({"run": work.run, "params": digest, "created": created}, sort_keys=True).encode()


def read(base: Path, roots: bytes, federation: str, policy: Policy, run: str = "") -> tuple[Work, Update]:
    """The job and the model of a parcel, as of when it was made: its signer's certificate may have ended
    since. `run`: whose it has to be, "" for any.

    Raises ProtocolError unless a coordinator signed both and they are this run's, Refused for a plan that
    this site does not run.
    """
    message = read_frames(base)
    params, values = message.arrays.get("params"), message.head
    job, word = values.get("job"), values.get("word")
    if (
        message.kind != "tune"
        or not isinstance(params, Update)
        or not isinstance(job, Mapping)
        or not isinstance(word, Mapping)
    ):
        raise CodecError("expected a message of kind 'tune' with a signed job and its model")
    created = float(word.get("created", 0.0))
    work = opened(job, roots, federation, now=created)
    chain, signature = (bytes(word.get(name, b"")) for name in ("chain", "signature"))
    text = _belong(work, params, created)
    signer = verify(chain, roots, text, signature, now=created, purpose=PURPOSE)
    if signer.role != "coordinator" or signer.federation != federation:
        raise ProtocolError("the model to fine-tune was not signed by this federation's coordinator")
    if run not in ("", work.run):
        raise ProtocolError(f"the model to fine-tune is of run {work.run}, the one that serves of {run}")
    if (learner := planned(work.values["table"])) is not None:
        if not policy.plans:
            raise Refused("this site runs no plans: [policy] plans = true allows them")
        plan = plans.held(message, str(learner["sha256"]), policy)
        work = replace(work, plan=plan, seconds=policy.plan_seconds)
    return work, params


def tune(
    base: Path,
    rows: Path,
    to: Path,
    values: Mapping[str, Any],
    *,
    vault: Vault,
    roots: bytes,
    federation: str,
    policy: Policy,
) -> dict[str, Any]:
    """Write the new model; {pieces, steps, cpu_seconds, fills}: whether the job's pipeline fills what is
    missing. `values`: seconds of CPU, passes, reach, seed, run.

    Raises Refused where the time is too short or the model cannot be fine-tuned here, ProtocolError as
    `read`: the parcel goes then, so that another is fetched.
    """
    began = time.process_time()
    try:
        work, params = read(base, roots, federation, policy, str(values.get("run", "")))
    except (ProtocolError, CodecError, IntegrityError):
        base.unlink()
        raise
    learner = work.learner
    while isinstance(learner, Wrapped):
        learner = learner.learner
    if not hasattr(learner, "export"):
        raise Refused("this run's learner writes no ONNX: its model cannot be renewed here")
    kept = msgspec.msgpack.decode(vault.read(rows), type=Rows).examples(classes=bool(work.classes))
    if work.pipeline is not None:
        kept = Examples(work.pipeline.rows(kept.x), kept.y)
    else:
        kept = kept[np.isfinite(kept.x.reshape(len(kept), -1)).all(axis=1)]
    key = Rng.of(int(values["seed"])).at("tune")
    left = float(values["seconds"]) - (time.process_time() - began)
    passes = int(values["passes"])
    found = tuned(learner, params, kept, key, seconds=left, passes=passes, round=work.job.rounds)
    fresh = toward(params, found.params, float(values["reach"]))
    part = to.with_name(f"{to.name}.part")
    try:
        learner.export(fresh, part, np.asarray(kept.x[:8], np.float32))
        graph = part.read_bytes()
        vault.write(to, graph if work.pipeline is None else work.pipeline.frozen(graph))
    finally:
        part.unlink(missing_ok=True)
    took = {"pieces": found.pieces, "steps": found.steps, "cpu_seconds": time.process_time() - began}
    return {**took, "fills": work.pipeline is not None}


def tuned(
    learner: Any,
    params: Update,
    rows: Examples,
    key: Rng,
    *,
    seconds: float,
    passes: int,
    round: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Tuned:
    """As far as it comes within `seconds` of CPU. Raises Refused where that is not LEAST rows far."""
    piece = max(LEAST, -(-len(rows) // PIECES))
    if len(rows) < LEAST or seconds <= 0:
        raise Refused(f"{seconds:.3g} s of CPU or {len(rows)} rows are too few to fine-tune")
    budget = Budget(sys.maxsize, seconds, passes)
    return fine_tune_within(learner, params, rows, budget, clock, key=key, round=round, piece=piece)
