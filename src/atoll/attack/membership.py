"""Who was in the training rows? Membership inference from the final model, by the loss.

Yeom, Giacomelli, Fredrikson, Jha 2018, "Privacy risk in machine learning: analyzing the connection to
overfitting", §3: a row is called a member if the model's loss on it is low. The advantage is the share of
members that are called so, less that of others; (ε, δ) bounds it (privacy/accountant.py: `advantage`), for a
promise to clients as well, for a row belongs to one.

The threshold is found on one half of the rows and tried on the other: found on what it is tried on, it would
seem to tell members where it tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError
from ..core.rng import Rng
from ..data.examples import Examples
from ..job import Job
from ..privacy.accountant import advantage
from ..run import Run, simulate
from .invert import open_job, pooled, private

Array = NDArray[Any]
_MOST = 2000  # rows asked of either kind


@dataclass(frozen=True)
class Membership:
    """How well the model's loss tells members: `advantage` from -1 to 1, 0 for a coin's. `spread`: its
    standard error. `bound`: the most that the promise allows, 1 without one. `accuracy`: the model's, on rows
    to test on, None where that is not measured.
    """

    protection: str
    advantage: float
    spread: float
    bound: float
    accuracy: float | None


def memberships(job: Job, data: Any, epsilon: float = 2.0, seed: int = 0) -> Iterator[Membership]:
    """The attack on the job in the open, and on it with its promise, or with one of `epsilon` for clients.

    Raises ConfigError where no rows are left that were not trained on.
    """
    noisy = private(job, len(data), epsilon)
    assert noisy.privacy is not None  # noqa: S101  made so
    claim = noisy.privacy
    most = advantage(claim.epsilon, claim.delta)
    for name, each, bound in (
        ("none", open_job(job), 1.0),
        (f"noise, epsilon {claim.epsilon:g}", noisy, most),
    ):
        run = simulate(each.replace(every=each.rounds, stop=None, sites=False), data, seed)
        found, spread = told(run, pooled(data), others(data), seed)
        yield Membership(name, found, spread, bound, run.metrics.get("accuracy"))


def others(data: Any) -> Examples:
    """Rows that nobody trains on."""
    test, tests = getattr(data, "test", None), [t for t in getattr(data, "tests", None) or () if len(t)]
    if test is not None and len(test):
        return test  # type: ignore[no-any-return]
    if not tests:
        raise ConfigError("membership is told from rows that were not trained on: set data.holdout = 0.25")
    return Examples(np.concatenate([t.x for t in tests]), np.concatenate([t.y for t in tests]))


def told(run: Run, members: Examples, strangers: Examples, seed: int = 0) -> tuple[float, float]:
    """The advantage of the loss threshold on the second half of both, and its standard error."""
    rng = Rng.of(seed).at("membership").generator()
    halves = [
        np.array_split(losses(run, rows[rng.permutation(len(rows))[:_MOST]]), 2)
        for rows in (members, strangers)
    ]
    (found, tried), (others_found, others_tried) = halves
    low = threshold(found, others_found)
    hit, alarm = (tried <= low).mean(), (others_tried <= low).mean()
    spread = np.sqrt(hit * (1 - hit) / len(tried) + alarm * (1 - alarm) / len(others_tried))
    return float(hit - alarm), float(spread)


def losses(run: Run, rows: Examples) -> Array:
    """The model's loss on each row."""
    one = (run.learner.evaluate(run.params, rows[i : i + 1], None) for i in range(len(rows)))  # type: ignore[arg-type]
    found = [next(float(m[name]) for name in ("loss", "mse") if name in m) for m in one]
    return np.asarray(np.nan_to_num(np.array(found), nan=np.inf))


def threshold(members: Array, strangers: Array) -> float:
    """The loss up to which most members and fewest others are."""
    at = np.unique(np.concatenate([members, strangers]))
    hits, alarms = (np.searchsorted(np.sort(v), at, "right") / len(v) for v in (members, strangers))
    return float(at[np.argmax(hits - alarms)])


__all__ = ["Membership", "losses", "memberships", "others", "threshold", "told"]
