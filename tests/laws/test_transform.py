"""Laws of core/transform.py: chains, what goes out and comes back, and the orders that are refused."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.compose import check
from atoll.core.errors import CompositionError, MisuseError
from atoll.core.rng import Rng
from atoll.core.transform import Context, Transform, chain, only, transform
from atoll.core.update import Update
from atoll.learn.compress import randomk, sign, topk
from atoll.learn.fednova import nova
from atoll.learn.personal import stay
from atoll.learn.quantise import int2, int8
from atoll.learn.ring import ring
from atoll.learn.rotate import rotate
from atoll.learn.server import adam, mean, sgd
from atoll.privacy.dp import clip

CTX = Context(Rng.of(0), steps=3)
LIKE = Update.of({"own/v": np.zeros(2), "w": np.zeros(4)})
PARTS = [
    *(adam(), sgd(0.5, 0.9), mean(), nova(), stay(), rotate(), topk(0.5), sign(), int8(), int2()),
    *(clip(1.0), ring(40, 64.0, 64.0)),
]
parts = st.sampled_from(PARTS)


def noise(*where: int) -> Update:
    return LIKE.map(lambda v: Rng.of(7).at(*where).generator().normal(size=v.shape))


@given(parts, parts, parts)
def test_chains_are_equal_however_they_are_nested(a: Transform, b: Transform, c: Transform) -> None:
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == chain(a, b, c)
    assert chain(chain(), a) == chain(a, chain()) == chain(a)
    assert hash(chain(chain(a), b)) == hash(chain(a, b))
    assert chain(a, b) != chain(b, a) or a == b


@given(parts, parts)
def test_a_chain_goes_out_left_to_right_and_back_right_to_left(a: Transform, b: Transform) -> None:
    seen: list[str] = []

    def told(name: str, part: Transform) -> Transform:
        def note(side, step):
            def both(update, state, ctx):
                seen.append(f"{name} {side}")
                return update, state

            return both

        return transform(name, note("out", part.out), note("back", part.back))

    both = chain(told("a", a), told("b", b))
    state = both.start(LIKE, "out")
    both.out(LIKE, state, CTX)
    both.back(LIKE, state, CTX)
    assert seen == ["a out", "b out", "b back", "a back"]


LINEAR = [
    chain(mean()),
    chain(mean(), ring(40, 64.0, 64.0)),
    chain(nova(), mean()),
    chain(nova(), mean(), ring(40, 64.0, 64.0)),
    chain(mean(), rotate()),
    chain(nova(), rotate(), mean(), ring(40, 64.0, 64.0)),
]


@given(st.sampled_from(LINEAR), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_linear_chains_bring_back_the_mean_of_what_went_out(part: Transform, who: list[int]) -> None:
    state = part.start(LIKE, "out")
    sent = [part.out(noise(k), state, CTX)[0] for k in who]
    total = reduce(add, sent)
    back, _ = part.back(total, part.start(LIKE, "back"), replace(CTX, weight=float(len(who))))
    np.testing.assert_allclose(back.buffer, np.mean([noise(k).buffer for k in who], axis=0), atol=1e-6)


@given(
    st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.sampled_from([np.float32, np.float64])
)
def test_clip_bounds_and_leaves_the_rest_alone(k: int, norm: float, scale: float, dtype: type) -> None:
    update = noise(k).scale(scale).astype(dtype)
    sent, _ = clip(norm).out(update, None, CTX)
    assert sent.norm() <= norm
    if update.norm() <= norm:
        assert sent == update
    else:
        assert sent.norm() == pytest.approx(norm, rel=1e-5)


FEEDBACK = [
    sign(),
    topk(0.3),
    topk(1e-9),
    topk(0.3, bits=8),
    topk(0.5, bits=1),
    randomk(0.5),
    randomk(0.3, bits=2),
]


@given(st.sampled_from(FEEDBACK), st.integers(1, 8))
def test_error_feedback_loses_nothing_over_time(part: Transform, rounds: int) -> None:
    state, sent = part.start(LIKE, "out"), LIKE
    for k in range(rounds):
        out, state = part.out(noise(k), state, CTX)
        sent = sent + out
    made = sum((noise(k).buffer for k in range(rounds)), np.zeros(6))
    np.testing.assert_allclose(sent.buffer + state.buffer, made, atol=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_topk_keeps_exactly_k_and_the_first_of_equals(values: list[int], fraction: float) -> None:
    update = Update.of({"w": np.array(values, np.float32)})
    part = topk(fraction)
    out, _ = part.out(update, part.start(update, "out"), CTX)
    k = int(np.ceil(fraction * len(values)))
    best = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    expected = [v if i in best else 0 for i, v in enumerate(values)]
    assert out["w"].tolist() == expected


def test_only_touches_the_leaves_of_its_prefix() -> None:
    part = only("own/", sgd(lr=0.5))
    back, _ = part.back(noise(1), None, CTX)
    assert back["w"].tolist() == noise(1)["w"].tolist()
    np.testing.assert_allclose(back["own/v"], noise(1)["own/v"] / 2)
    with pytest.raises(MisuseError, match="appends no leaf"):
        only("w", nova())


def test_each_part_begins_with_the_leaves_that_reach_it() -> None:
    both = chain(mean(), stay(), topk(0.5))
    assert list(both.start(LIKE, "out")[2]) == ["w"]
    assert both.start(LIKE, "back")[2] is None
    assert list(both.outgoing(LIKE)) == ["w"]
    assert list(chain(nova(), stay()).outgoing(LIKE)) == ["w", "nova.tau"]
    assert topk(0.5).start(LIKE, "out") == LIKE  # not a chain: its own state, in no tuple


NOISE = transform("noise()", needs_bound=True)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            chain(mean(), adam()),
            r"adam\(lr=0.01\) takes a step on the mean .* put adam\(lr=0.01\) before mean\(\)",
        ),
        (chain(stay(), clip(1.0)), r"nobody divides the sum of the updates: add mean\(\)"),
        (chain(adam()), r"put mean\(\) after adam"),
        (chain(mean(), mean(2.0)), "both divide the sum: keep one"),
        (chain(mean(), NOISE), r"a sum nobody bounds: put clip\(...\) before noise\(\)"),
        (
            chain(mean(), clip(1.0), topk()),
            r"adds back what clip\(1\) removed: put topk\(0.01\) before clip\(1\)",
        ),
        (
            chain(mean(), ring(), clip(1.0)),
            r"clip\(1\) takes real numbers, ring\(32\) gives integers of a ring: put clip",
        ),
        (
            chain(mean(), transform("mask()", takes="ring")),
            r"takes integers of a ring, the learner gives real",
        ),
        (chain(nova(), mean(), topk()), r"would change the number that nova\(0\) appends: put topk"),
        (chain(nova(), mean(), clip(1.0), NOISE), r"no bound covers, so noise\(\) cannot protect it"),
        (chain(mean(), clip(1.0), NOISE, nova()), r"no bound covers, so noise\(\) cannot protect it"),
    ],
)
def test_orders_that_break_a_promise_are_refused_with_the_fix(algorithm: Transform, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        check(algorithm)


def test_rules_and_exchanges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CompositionError, match=r"use Buckets\(k, rule\)"):
        check(chain(mean()), sees="each", shows="sum")
    with pytest.raises(CompositionError, match="compares real numbers"):
        check(chain(mean(), ring()), rings=False)
    check(chain(adam(), mean(), topk(), clip(1.0), NOISE, ring()))
