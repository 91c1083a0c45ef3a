"""A pipeline's figures: means, deviations and medians of a federation's columns, look after look.

Each look is one sum over the same clients, and the model is what was found so far:

    rough, fine    where the columns are and how wide, roughly and then exactly       moments.py
    0 .. 7         the next digit of each median                                      order.py

Sums travel as whole numbers: a real one is cut into limbs of 32 bits, from 2^292 down to 2^-316, so that
nobody need say first how large it is. Whoever adds whole numbers adds them exactly, be it in the open or
under masks in a ring of 64 bits, over any tree; so the figures are the same bytes however they were summed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError, QuorumError
from atoll.core.message import Contribution, FitContext
from atoll.core.protocol import Party
from atoll.core.rng import Rng
from atoll.core.transform import Context, State, Transform, chain, transform
from atoll.core.update import Update

from .algorithm import Algorithm, Roles
from .exact import complete, total
from .exchange import Exchange
from .moments import Moments
from .order import DIGITS, Order, chosen, ranks
from .rounds import Plan, Progress, add, ask, begin, choose, pause
from .secure import SecureSum
from .table import cells

Floats = NDArray[np.float64]
LARGEST = 2.0**33  # beyond any limb, and the rows of any site
RING = 64  # bits, in which the limbs of 2^29 clients can be added
_UNITS = np.exp2(np.arange(260.0, -317.0, -32.0))[:, None]  # of each limb
_BLOCK = 1 << 13  # rows at a time: a site may have many, and little memory
_CELL = 2.0**127  # where float32 ends, in which rows are learnt from
_MEDIAN = (0.5,)


@dataclass(frozen=True)
class Figures:
    """A learner of the means, deviations (over n) and medians of `columns`; data as `Order` takes them, or
    windows (n, size, columns), whose readings are the rows then.

    `moments`, `median`: what is asked for.
    """

    columns: int
    moments: bool = True
    median: bool = True

    @property
    def looks(self) -> tuple[str | int, ...]:
        """What is asked, one after the other."""
        moments = ("rough", "fine") if self.moments else ()
        return (*moments, *(range(DIGITS) if self.median else ()))

    @property
    def bounds(self) -> Mapping[str, float]:
        """Of any leaf."""
        return dict.fromkeys(("pairs", "half", "product", "counts"), LARGEST)

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Nothing is known: zeros, each written once. `look`: how many there were."""
        one, two = np.zeros(self.columns), np.zeros((self.columns, 2))
        names = ("shift", "scale", "mean", "deviation", "count")
        digits = np.zeros((DIGITS, self.columns, 2))
        return {"look": np.zeros(1), **dict.fromkeys(names, one), "rank": two, "digits": digits}

    def now(self, params: Mapping[str, Any]) -> str | int | None:
        """The look that comes next, None after the last."""
        done = int(params["look"][0])
        return self.looks[done] if done < len(self.looks) else None

    def contributes(self, params: Update) -> Update:
        """What a look sums."""
        return self.fit(params, np.empty((0, self.columns)), FitContext(Rng.of(0))).update

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """This site's sums of the look. Raises DataError for other columns, or cells that are no float32."""
        look, x = self.now(params), np.asarray(getattr(data, "x", data))
        x = x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x
        blocks = (x[i : i + _BLOCK] for i in range(0, len(x) or 1, _BLOCK))
        sums = reduce(operator.add, (self._sums(look, params, block, ctx) for block in blocks))
        if look not in ("rough", "fine"):
            return Contribution({"counts": sums["counts"]})
        limbs = {name: _limbs(sums[name]) for name in ("half", "product")}
        return Contribution({"pairs": sums["pairs"], **limbs})

    def _sums(self, look: Any, params: Update, block: Any, ctx: FitContext) -> Update:
        x = cells(block, self.columns)
        if np.nan_to_num(np.abs(x)).max(initial=0.0) > _CELL:
            raise DataError("some cells are larger than 1e38: scale them, or make them missing (NaN)")
        if look in ("rough", "fine"):
            return self._frame(look, params).fit(params, x, ctx).update
        return Order(self.columns, _MEDIAN).fit(params, x, replace(ctx, round=int(look or 0))).update

    def found(self, params: Update, sums: Update) -> Update:
        """What a look's sums say: what it adds to the model."""
        look = self.now(params)
        step: dict[str, Any] = {name: np.array(leaf) for name, leaf in params.zeros().items()}
        step["look"][0] = 1
        if look in ("rough", "fine"):
            whole = {name: _whole(sums[name]) for name in ("half", "product")} | {"pairs": sums["pairs"]}
            frame, names = self._frame(look, params), ("mean", "deviation")
            if look == "rough":
                step["shift"], step["scale"] = frame.spread(whole)
            else:
                step |= dict(zip(names, frame.each(whole), strict=True))
        else:
            counts, rank = sums["counts"], params["rank"]
            if look == 0:
                step["count"] = counts[:, 0].sum(axis=-1)
                rank = ranks(step["count"], _MEDIAN)
            step["digits"][look], after = chosen(counts, rank)
            step["rank"] = after - params["rank"]
        return Update.of(step)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Figures predict nothing."""
        return {}

    def read(self, params: Mapping[str, Any]) -> tuple[Floats, Floats, Floats]:
        """Means, deviations and medians, (columns,) each: zeros where they were not asked for."""
        median = np.zeros(self.columns)
        if self.median:
            median = Order(self.columns, _MEDIAN).values(params)[:, 0]
        return np.asarray(params["mean"]), np.asarray(params["deviation"]), median

    def _frame(self, look: Any, params: Mapping[str, Any]) -> Moments:
        known = ("shift", "scale") if look == "fine" else ()
        return Moments(self.columns, cross=False, **{name: np.asarray(params[name]) for name in known})


def _limbs(sums: Floats) -> Floats:
    """Real sums as whole numbers, (limbs, columns): what is below 2^-317 is lost."""
    limbs = np.empty((len(_UNITS), *sums.shape))
    for limb, unit in zip(limbs, _UNITS, strict=True):
        limb[...] = np.rint(sums / unit)
        sums = sums - limb * unit  # exact: the rest of a division by a power of two
    return limbs


def _whole(limbs: Floats) -> Floats:
    """The inverse, of sums of limbs, each rounded once."""
    return np.array([fsum(column) for column in (limbs * _UNITS).T])


def looking(learner: Figures) -> Transform:
    """Coming back, what a look's sums say; the state is the model so far."""

    def back(sums: Update, known: State, ctx: Context) -> tuple[Update, State]:
        step = learner.found(known, sums)
        return step, add(known, step)

    return transform("looking()", back=back, init=lambda params: params, keeps="back")


def figures(learner: Figures, *, strict: bool = False) -> Algorithm:
    """Look after look, until all figures are known.

    Who does not answer the first look is left out of all. Who is lost later would be in some sums and not in
    others: in the open it begins again without them; where only sums are seen that would be a second sum of
    the same, whose difference shows theirs, so the run ends there. `strict`: it ends whoever does not answer.
    """

    async def role(p: Party, plan: Plan) -> Progress:
        now: Progress = p.restored or begin(plan, p)
        waited = 0.0
        while learner.now(now.params) is not None:
            key = p.key.at("look", now.round)
            members = tuple(now.more or await choose(p, plan, now, key))
            after, record = await ask(p, plan, now, members, key)
            if after is now:  # all of them hold back
                waited = await pause(p, plan, waited)
                continue
            waited = await pause(p, plan)
            if strict:
                complete(record)
            await p.note(record)
            now = _settled(p, plan, after, record, members, first=now.more is None)
            await p.checkpoint(now)
        return now

    roles = Roles(role, apart=False, summed=True)
    return Algorithm("figures", chain(looking(learner), total()), weigh="equal", protocol=roles)


def _settled(
    p: Party, plan: Plan, after: Progress, record: Mapping[str, Any], members: tuple[int, ...], *, first: bool
) -> Progress:
    """Where the looks stand after one. Raises QuorumError where they cannot go on."""
    stayed = tuple(c for c in members if c not in record["failed"])
    if not record["clients"]:
        return after  # the same look again
    if first or stayed == members:
        return replace(after, more=stayed)
    if plan.algorithm.exchange.shows == "sum":
        reason = next(iter(record["failed"].values())).strip().splitlines()[-1]
        raise QuorumError(
            "a pipeline's figures are sums of the same members in every look, and of"
            f" {len(members)} there are {len(stayed)} left ({reason}); other sums beside the ones that were"
            " opened would show who is in one of them only: submit the job again when all are back, or with"
            " an earlier run's figures as its pipeline"
        )
    return replace(begin(plan, p), round=after.round, more=stayed)


def summed(exchange: Exchange) -> Exchange:
    """The exchange that sums a look's whole numbers exactly. Raises ConfigError where it has no room."""
    if exchange.shows == "each":
        return exchange
    if isinstance(exchange, SecureSum):
        return replace(exchange, bits=RING, largest=LARGEST)
    raise ConfigError(
        "a pipeline's figures are summed in 64 bits, which only secure_sum() has: use it, or give the figures"
        " of at.fit_pipeline(...).table()",
        "$.data.pipeline",
    )
