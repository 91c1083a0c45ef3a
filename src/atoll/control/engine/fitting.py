"""A run's pipeline where its file does not have the figures: fitted before round 1, then frozen.

    roster ─► looks at rows, a drive of its own ─► figures on disk ─► in the signed job, for every member

What the looks have found is a checkpoint of their own journal; the pipeline is written once, and from then on
the run's job names it as if its file had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.pipeline import Pipeline
from ...learn.rounds import COORDINATOR, Progress
from ...wire.failpoint import declare, hit
from ..store.store import Store
from .work import Work

SCOPE = "fit"  # of the looks' journal
_FROZEN = declare("fitting.frozen.before"), declare("fitting.frozen.after")


def kept(store: Store, run: str) -> Pipeline | None:
    """The run's pipeline, once it is frozen."""
    state = store.journal(run, "pipeline").resume().state
    return None if state is None else Pipeline.of(json.loads(state))


def freeze(store: Store, work: Work, last: Progress, names: Mapping[int, str]) -> Pipeline:
    """The pipeline of what the looks have found, on disk, and in the log who has no part in it, and why."""
    file, run = work.file, work.run
    assert file.contract is not None and file.recipe is not None  # noqa: S101, PT018  it fits
    made = file.recipe.made(file.contract, *work.learner.read(last.params))
    records = store.journal(run, SCOPE).notes()
    for client, reason in left_out(records, last.more, names).items():
        store.log_add(run, client, "warning", f"no part in the pipeline's figures: {reason}")
    store.log_add(run, COORDINATOR, "info", f"the pipeline's figures are of {len(last.more)} members")
    hit(_FROZEN[0])
    store.journal(run, "pipeline").checkpoint(json.dumps(made.table()).encode(), 0, 0)
    hit(_FROZEN[1])
    return made


def left_out(
    records: Sequence[Mapping[str, Any]], members: Sequence[int], names: Mapping[int, str]
) -> dict[str, str]:
    """Why each client that is none of the members is not, by name."""
    failed = {int(c): str(why) for record in records for c, why in record["failed"].items()}
    return {
        name: failed.get(client, "it held back by its own policy")
        for client, name in sorted(names.items())
        if client not in members
    }


def frozen(table: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """A job file's values with the figures in them."""
    return {**table, "data": {**table["data"], "pipeline": pipeline.table()}}
