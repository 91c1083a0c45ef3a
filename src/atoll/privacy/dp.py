"""Differential privacy of sums: bound what one contribution can change, then add noise to the sum.

McMahan, Ramage, Talwar, Zhang 2018, "Learning differentially private recurrent language models", alg. 1:

    each client     Δ <- Δ min(1, S / ||Δ||₂) over the whole update           clip(S)
    the sum         Σ Δ + N(0, (z S)²), then divided by a number fixed before  gaussian(z), mean(over=n)

The noise is the server's (*central*): who reads the models is kept from telling whether a client took
part; the server itself sees the sum without noise and is trusted. Its keys are drawn by the system, kept
by the coordinator alone, and named by the sum: the same sum gets the same noise, another sum never.
Costs are accountant.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import TypeGuard

import numpy as np

from ..core.errors import CompositionError, ConfigError, MisuseError
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain
from ..core.update import Update
from . import noise
from .draws import Hidden

SLACK = 1 - 2.0**-20  # rounding each entry to float32 may not lift the norm over its bound


@part("transform")
def clip(norm: float) -> Transform:
    """Scale an update down until its L2 norm over all leaves is at most `norm` > 0.

    Updates within the bound pass untouched. It bounds what one client adds, and hides nothing.
    """
    if not norm > 0:
        raise ConfigError(f"norm must be above 0, got {norm}")

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        length = update.norm()
        within = length <= norm or not isfinite(length)  # the aggregator refuses what is not finite
        return (update if within else update.scale(norm * SLACK / length)), state

    return Clip(f"clip({norm:g})", out, sets_bound=float(norm), whole=True)


@dataclass(frozen=True)
class Clip(Transform):
    """A bound that scales and does nothing else; see `clip`."""


@dataclass(frozen=True)
class Divisor(Transform):
    """A mean that divides by a number known before the round, which says nothing about who came."""


@dataclass(frozen=True)
class RowBound(Transform):
    """What a single row changes at most; the update, a sum over rows, may be longer."""


def row_bound(norm: float) -> RowBound:
    """Declares that the learner has clipped every row's gradient to the L2 norm `norm` > 0."""
    return RowBound(f"row_bound({norm:g})", sets_bound=norm)


@dataclass(frozen=True)
class Gaussian(Transform):
    """Central noise; see `gaussian`. `sigma`: over `bound`, the L2 norm of what one client adds."""

    sigma: float = 0.0
    bound: float = 0.0


@dataclass(frozen=True)
class Own(Gaussian):
    """Local noise: every client's own, on what leaves it, so that nobody sees its update without."""


@part("transform")
def gaussian(sigma: float) -> Transform:
    """Add Gaussian noise to the sum, coming back: `sigma` > 0 times the bound that clip() has set.

    Each sum is of clients that weigh the same, and is divided by a fixed number: mean(over=...) or
    mean(share=...). `Job.private` finds sigma for an ε.
    """
    if not (sigma > 0 and isfinite(sigma)):
        raise ConfigError(f"sigma must be above 0, got {sigma}")
    return _noisy(sigma, 0.0, None)


def _noisy(sigma: float, bound: float, key: bytes | None) -> Gaussian:
    def back(total: Update, state: State, ctx: Context) -> tuple[Update, State]:
        if not bound or key is None:
            raise MisuseError("noise is added by the server of a run, to what clip() has bounded")
        if total.rows:
            raise MisuseError(f"noise covers dense leaves, and {sorted(total.rows)} came as sparse rows")
        noisy, _ = noise.add(total.buffer, bound, sigma, key)
        return Update(total.layout, noisy), state

    return Gaussian(f"gaussian({sigma:g})", back=back, needs_bound=True, sigma=sigma, bound=bound)


def _own(sigma: float, bound: float, coins: bytes) -> Own:
    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        if not bound or not coins:
            raise MisuseError("a client adds noise by coins of its own, to what clip() has bounded")
        if update.rows:
            raise MisuseError(f"noise covers dense leaves, and {sorted(update.rows)} came as sparse rows")
        made, _ = noise.add(update.buffer, bound, sigma, own_key(coins, ctx, update))
        return Update(update.layout, made.astype(update.buffer.dtype)), state

    return Own(f"own noise({sigma:g})", out, needs_bound=True, whole=True, sigma=sigma, bound=bound)


def noisy(algorithm: Transform) -> Gaussian | None:
    """The part of a chain that adds noise."""
    return next((part for part in algorithm.steps if isinstance(part, Gaussian)), None)


def bounded(algorithm: Transform) -> Transform:
    """The chain with its noise sized for its clip; any other chain as it is.

    Raises CompositionError where the noise would not cover what a client can change.
    """
    steps = list(algorithm.steps)
    found = [i for i, step in enumerate(steps) if isinstance(step, Gaussian)]
    if not found:
        return algorithm
    if len(found) > 1:
        raise CompositionError("noise is added twice: keep one gaussian()")
    here = found[0]
    bounds = [i for i, step in enumerate(steps[:here]) if step.sets_bound is not None]
    if not bounds:
        return algorithm  # core/compose.py says what is missing
    given = steps[here]
    assert isinstance(given, Gaussian)  # noqa: S101  found as one
    bound = float(steps[bounds[-1]].sets_bound or 0.0)
    local = isinstance(given, Own)  # what comes after it, or is done with its sums, is anybody's affair
    for step in steps[bounds[-1] + 1 : here if local else None]:
        if not step.silent and step.sets_bound is None:
            raise CompositionError(
                f"{step} changes updates after {steps[bounds[-1]]} has bounded them: put {step} before it"
            )
    for step in () if local else steps:
        if step.averages and not isinstance(step, Divisor):
            raise CompositionError(
                f"{step} divides by how many came, which no noise hides: divide by a number known before,"
                " mean(over=...) or mean(share=...)"
            )
    steps[here] = _own(given.sigma, bound, b"") if local else _noisy(given.sigma, bound, None)
    return chain(*steps)


def longest(algorithm: Transform) -> float | None:
    """The L2 norm that no update has above it as it leaves its client; None where nothing says so."""
    found = None
    for step in algorithm.steps:
        if isinstance(step, RowBound):
            found = None
        elif step.sets_bound is not None:
            found = step.sets_bound
        elif not step.silent:
            found = None
    return found


def keyed(algorithm: Transform, key: bytes | None) -> Transform:
    """The chain whose noise is that of `key`, for one sum; None for one that has its noise already."""
    return chain(
        *(
            _noisy(step.sigma, step.bound, key) if _servers(step) and key is not None else step
            for step in algorithm.steps
            if key is not None or not _servers(step)
        )
    )


def _servers(step: Transform) -> TypeGuard[Gaussian]:
    return isinstance(step, Gaussian) and not isinstance(step, Own)


def local(algorithm: Transform) -> bool:
    """Whether each client adds noise of its own."""
    return isinstance(noisy(algorithm), Own)


def mine(algorithm: Transform, coins: bytes) -> Transform:
    """The chain of a client whose own noise is that of its `coins`; any other chain as it is."""
    if not local(algorithm):
        return algorithm
    return chain(*(_own(s.sigma, s.bound, coins) if isinstance(s, Own) else s for s in algorithm.steps))


def own_key(coins: bytes, ctx: Context, update: Update) -> bytes:
    """The key of one update's noise: of the client's coins, its place in the run and the numbers."""
    made = blake2b(key=_secret(coins), digest_size=noise.KEY, person=b"atoll own noise")
    made.update(repr((ctx.round, ctx.key.key)).encode())
    made.update(update.buffer.view(np.uint8).data)
    return made.digest()


def sum_key(secret: bytes, round: int, clients: tuple[int, ...], total: Update) -> bytes:
    """The key of one sum's noise: of this run's `secret`, the round, who contributed and the numbers."""
    made = blake2b(key=_secret(secret), digest_size=noise.KEY, person=b"atoll sum noise")
    made.update(repr((round, sorted(clients))).encode())
    made.update(total.buffer.view(np.uint8).data)
    return made.digest()


def cohort_stream(secret: bytes, round: int) -> Hidden:
    """The stream that a round's cohort is drawn from: what sampling hides, the job's seed would tell."""
    return Hidden.below(_secret(secret), "cohort", round)


def row_stream(coins: bytes) -> Hidden:
    """The stream that rows are drawn from, at their own site: the job's seed would tell everybody."""
    return Hidden.below(_secret(coins), "rows")


def _secret(secret: bytes) -> bytes:
    if len(secret) < noise.KEY:
        raise MisuseError("a run with noise needs a secret of its own")
    return secret


def by_rows(algorithm: Transform) -> bool:
    """Whether a chain's noise hides single rows, and not whole updates."""
    return any(isinstance(step, RowBound) for step in algorithm.steps)


def private(
    algorithm: Transform,
    norm: float,
    sigma: float,
    share: Transform,
    *,
    rows: bool = False,
    local: bool = False,
) -> Transform:
    """A chain made private: its mean replaced by `share`, then clip and noise, nearest the wire. `rows`: each
    row is clipped by the learner, and the update is not. `local`: each client adds the noise itself; what
    else changes an update of clipped rows comes behind it.

    Raises CompositionError for a chain that has a clip or noise of its own, no plain mean, or a step between
    clipped rows and noise.
    """
    for step in algorithm.steps:
        if step.sets_bound is not None or isinstance(step, Gaussian):
            raise CompositionError(f"{step} and the job's own privacy both bound updates: leave {step} out")
    means = [i for i, step in enumerate(algorithm.steps) if step.averages]
    if len(means) != 1 or not algorithm.steps[means[0]].silent:
        raise CompositionError(
            f"{algorithm} has no plain mean() that could divide by a fixed number: privacy needs one"
        )
    steps = [share if i == means[0] else step for i, step in enumerate(algorithm.steps)]
    made = _own(sigma, 0.0, b"") if local else gaussian(sigma)
    if not rows:
        return chain(*steps, clip(norm), made)
    changing = [step for step in steps if not step.silent and step.drops is None]
    if changing and not local:
        raise CompositionError(
            f"{changing[0]} changes sums of clipped gradients, and one row would change what it gives by more"
            ' than the clip, for which the noise is sized: leave it out, or say noise="local", behind which'
            " it comes"
        )
    return chain(*(s for s in steps if s not in changing), row_bound(norm), made, *changing)


__all__ = [
    "Clip",
    "Divisor",
    "Gaussian",
    "Own",
    "RowBound",
    "bounded",
    "by_rows",
    "clip",
    "cohort_stream",
    "gaussian",
    "keyed",
    "local",
    "longest",
    "mine",
    "noisy",
    "private",
    "row_bound",
    "sum_key",
]
