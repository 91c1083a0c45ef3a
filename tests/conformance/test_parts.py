"""Every transform and aggregator of ours passes its contract; deliberately wrong ones do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atoll.core.aggregate import Sum
from atoll.core.transform import Transform, chain, only, transform
from atoll.learn.compress import randomk, sign, topk
from atoll.learn.defend import momentum
from atoll.learn.feddyn import settle
from atoll.learn.fednova import nova
from atoll.learn.personal import stay
from atoll.learn.qfedavg import fair
from atoll.learn.quantise import int2, int4, int8
from atoll.learn.ring import ring
from atoll.learn.robust import Buckets, Gather
from atoll.learn.rotate import rotate
from atoll.learn.rules import geometric_median, median, multi_krum, nnm, trimmed_mean
from atoll.learn.scaffold import share
from atoll.learn.server import adagrad, adam, mean, sgd, yogi
from atoll.learn.thin import thin
from atoll.privacy.dp import clip
from atoll.testing import check_aggregator, check_transform

OURS = [
    *(mean(), mean(over=3.0), sgd(), sgd(0.5, 0.9), adagrad(), adam(), yogi()),
    *(nova(), nova(0.9), settle(0.1), share(), only("w", share()), stay("b")),
    *(topk(0.3), sign(), clip(0.5), clip(99.0), ring(), ring(64, 2.0**20, 2.0**20)),
    *(
        int8(),
        int4(),
        int2(),
        rotate(),
        randomk(0.5),
        thin(0.5),
        topk(0.3, bits=8),
        topk(0.5, bits=1),
        topk(0.3, exact=True),
    ),
    chain(mean(), rotate(), int4()),
    chain(mean(), topk(0.5), int8(), clip(0.5)),
    *(momentum(), momentum(0.0)),
    chain(adam(), mean(), stay("b"), topk(0.3), clip(0.5), ring()),
    chain(nova(), mean(), ring()),
    chain(),
]


@pytest.mark.parametrize("part", OURS, ids=str)
def test_our_transforms_pass(part: Transform) -> None:
    check_transform(part)


def test_one_that_needs_its_learners_leaf_passes_on_the_way_back() -> None:
    with pytest.raises(AssertionError, match=r"must send the leaves it declares"):
        check_transform(fair(0.1))  # its wrapper appends the leaf, not the transform


def hidden() -> Transform:
    calls: list[int] = []

    def out(update: Any, state: Any, ctx: Any) -> Any:
        calls.append(1)
        return update.scale(len(calls)), state

    return transform("hidden()", out)


def in_place(update: Any, state: Any, ctx: Any) -> Any:
    state[0] += 1
    return update, state


WRONG = {
    "no hidden state": hidden(),
    "must not change what it is given": transform(
        "grows()", in_place, init=lambda params: np.zeros(1), keeps="out"
    ),
    "must send the leaves it declares": transform("drops()", lambda u, s, c: (u.pick("w".__eq__), s)),
    "declares a norm of at most": transform("clips()", sets_bound=1.0),
    "must give what it declares: ring": transform("rings()", gives="ring"),
    "declares 'nova.tau' up to": replace(nova(), adds={"nova.tau": 1.0}),
    "must give back the model's leaves": transform("eats()", back=lambda u, s, c: (u.pick("w".__eq__), s)),
    "must give finite numbers": transform("nan()", back=lambda u, s, c: (u.map(lambda v: v * np.nan), s)),
}


@pytest.mark.parametrize("law", WRONG)
def test_control_a_wrong_transform_is_named(law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_transform(WRONG[law])


def largest(U: Any) -> Any:
    return U.max(axis=0)


@pytest.mark.parametrize(
    "make",
    [
        *(Sum, lambda: Gather(largest), lambda: Buckets(3, largest), lambda: Buckets(1, largest)),
        *(lambda: Gather(nnm(0.2, trimmed_mean(0.2))), lambda: Gather(multi_krum(2))),
        *(lambda: Gather(geometric_median()), lambda: Buckets(4, median())),
    ],
    ids=["sum", "gather", "buckets", "one bucket", "nnm", "multi-krum", "geometric median", "medians"],
)
def test_our_aggregators_pass(make: Callable[[], Any]) -> None:
    check_aggregator(make)


class Kept(Gather):
    """Forgets the order of clients."""

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def at(self, points: Any, cohort: Any, key: Any) -> Any:
        return Kept(self.rule, points)


class Floats(Sum):
    """Adds floating-point numbers."""

    def at(self, points: Any, cohort: Any, key: Any) -> Any:
        return Floats(points)

    def lift_all(self, replies: Any) -> Any:
        whole = super().lift_all(replies)
        return replace(whole, sums=np.array([sum(r.weight * r.update.buffer for _, r in replies)]))

    def finish(self, partial: Any) -> Any:
        total = super().finish(replace(partial, sums=np.zeros((1, len(partial.sums[0])), np.int64)))
        return replace(total, update=type(total.update)(partial.layout, partial.sums[0]))


class Open(Gather):
    """Lets anything in."""

    def at(self, points: Any, cohort: Any, key: Any) -> Any:
        return self

    def lift(self, peer: int, reply: Any) -> Any:
        return ((peer, reply),)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (lambda: Kept(lambda U: U[0]), "the order of replies must not matter"),
        (Floats, "must not matter|must give the flat total"),
        (lambda: Open(largest), "must be refused"),
    ],
    ids=["order", "floats", "open"],
)
def test_control_a_wrong_aggregator_is_named(make: Callable[[], Any], law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_aggregator(make)
