"""The workplace's part of renewing: the federation's model, trained on a site's own recent rows within its
time.

The new model lies part of the way from the federation's to what local training makes of it (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models": half-way, weights mostly answer better to a world that moves
on than at either end). Each begins at the federation's version and never at an earlier own one, so that own
models do not wander off.

    base    a parcel of kind "tune": the signed job, the params, and the coordinator's word that they belong
    rows    sealed: the site's recent rows and labels
    to      sealed: the new model as ONNX
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...adapt.plan_table import planned
from ...core.errors import CodecError, ProtocolError, Refused
from ...core.message import FitContext, fit_many
from ...core.rng import Rng
from ...core.update import Update
from ...data import Examples
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
PROBE = 20  # a pass over so small a part of the rows tells what one over all costs
LEAST = 50  # rows


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


def read(base: Path, roots: bytes, federation: str, policy: Policy) -> tuple[Work, Update]:
    """The job and the model of a parcel, as of when it was made: its signer's certificate may have ended
    since.

    Raises ProtocolError unless a coordinator signed both, Refused for a plan that this site does not run.
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
    """Write the new model; {passes, rows, cpu_seconds}. `values`: seconds of CPU, passes, reach, seed.

    Raises Refused where the time is too short or the model cannot be fine-tuned here, ProtocolError as
    `read`.
    """
    began = time.process_time()
    work, params = read(base, roots, federation, policy)
    learner = work.learner
    while isinstance(learner, Wrapped):
        learner = learner.learner
    if not hasattr(learner, "export"):
        raise Refused("this run's learner writes no ONNX: its model cannot be renewed here")
    kept = msgspec.msgpack.decode(vault.read(rows), type=Rows).examples(classes=bool(work.classes))
    if work.pipeline is not None:
        kept = Examples(work.pipeline.rows(kept.x), kept.y)
    key = Rng.of(int(values["seed"])).at("tune")
    left = float(values["seconds"]) - (time.process_time() - began)
    fresh, passes, used = tuned(
        learner,
        params,
        kept,
        key,
        left,
        int(values["passes"]),
        round=work.job.rounds,
        reach=float(values["reach"]),
    )
    part = to.with_name(f"{to.name}.part")
    try:
        learner.export(fresh, part, np.asarray(kept.x[:8], np.float32))
        graph = part.read_bytes()
        vault.write(to, graph if work.pipeline is None else work.pipeline.frozen(graph))
    finally:
        part.unlink(missing_ok=True)
    return {"passes": passes, "rows": used, "cpu_seconds": time.process_time() - began}


def tuned(
    learner: Any,
    params: Update,
    rows: Examples,
    key: Rng,
    seconds: float,
    passes: int = 2,
    *,
    reach: float = 0.5,
    round: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> tuple[Update, int, int]:
    """The model `reach` of the way that `passes` trainings go, as many as fit into `seconds` of CPU; how many
    did, and how many of the newest rows they learnt from. Raises Refused where there is too little time.
    """
    began = clock()

    def trained(start: Update, part: Examples, turn: int) -> tuple[Update, float]:
        before = clock()
        (made,) = fit_many(learner, start, [part], [FitContext(key.at(turn), round)])
        return start + made.update, clock() - before

    probe = max(LEAST, len(rows) // PROBE)
    _, cost = trained(params, rows[-probe:], 0)
    each = max(cost, 1e-6) / min(probe, len(rows))
    fits = int((seconds - cost) / each)
    if min(fits, len(rows)) < LEAST:
        raise Refused(f"{seconds:.3g} s of CPU or {len(rows)} rows are too few to fine-tune")
    part, fresh, done = rows[-min(fits, len(rows)) :], params, 0
    while done < passes and (not done or clock() - began + each * len(part) <= seconds):
        fresh, cost = trained(fresh, part, done + 1)
        each, done = cost / len(part), done + 1
    buffer = params.buffer + reach * (fresh.buffer - params.buffer)
    return Update(params.layout, buffer.astype(params.buffer.dtype)), done, len(part)
