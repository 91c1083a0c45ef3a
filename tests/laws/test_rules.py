"""Robust rules: what each promises of any updates, by blocks as a whole, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.config import parse
from atoll.control.remote.restate import table
from atoll.core.aggregate import Reply, fold, points
from atoll.core.errors import CompositionError, ConfigError, MisuseError, ProtocolError, QuorumError
from atoll.core.registry import build, parts
from atoll.core.rng import Rng
from atoll.core.update import Rows, Update
from atoll.job import Job
from atoll.learn.defend import recommended, robust
from atoll.learn.dense import softmax
from atoll.learn.robust import Buckets, Gather
from atoll.learn.rules import (
    Rule,
    Stack,
    average,
    centred_clipping,
    fltrust,
    geometric_median,
    krum,
    level,
    median,
    multi_krum,
    nnm,
    norm_bound,
    stack,
    trimmed_mean,
    within,
)

KEY = Rng.of(5)
RULES = {
    "average": average(),
    "median": median(),
    "trimmed_mean": trimmed_mean(0.2),
    "geometric_median": geometric_median(),
    "centred_clipping": centred_clipping(),
    "krum": krum(0.2),
    "multi_krum": multi_krum(0.2),
    "nnm": nnm(0.2, trimmed_mean(0.2)),
    "nnm krum": nnm(0.2, krum(0.2)),
    "norm_bound": norm_bound(),
    "level": level(average()),
    "level median": level(median()),
    "within": within(average()),
    "recommended": recommended(0.2),
    "norm_bound median": norm_bound(then=median()),
}
ROBUST = [name for name in RULES if name not in ("average", "norm_bound", "level", "within")]
BY_CHOICE = {"krum", "nnm krum", "multi_krum", "nnm", "recommended"}  # near ties may fall either way
BY_LENGTH = {"norm_bound", "norm_bound median", "level", "level median", "recommended"}


def updates(seed: int, n: int, d: int, dtype: type = np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + rng.normal(size=(n, d))).astype(dtype)


def test_every_rule_is_tested_here() -> None:
    tested = {word for name in RULES for word in name.split()} | {"fltrust"}
    assert tested == {p.name for p in parts("rule")}


@pytest.mark.parametrize("name", RULES)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(2, 9))
def test_order_scale_and_shift(name: str, seed: int, n: int, d: int) -> None:
    """Rules know no order of clients and no unit; all but those of lengths know no origin.

    (In one dimension any point between the middle two is a geometric median.)
    """
    rule, U = RULES[name], updates(seed, n, d)
    out = rule(U)
    assert out.shape == (d,) and np.isfinite(out).all()
    np.testing.assert_allclose(rule(4 * U), 4 * out, rtol=1e-6, atol=1e-9)
    if "krum" not in name and name != "recommended":  # of equal scores the lower id wins
        shuffled = rule(U[np.random.default_rng(seed).permutation(n)])
        np.testing.assert_allclose(shuffled, out, rtol=1e-6, atol=1e-9)
    if name not in BY_LENGTH | BY_CHOICE:
        np.testing.assert_allclose(rule(U + 3), out + 3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
def test_who_agree_are_not_contradicted(name: str, n: int) -> None:
    """One update alone, and any number of equal ones, are the answer."""
    for one in (np.array([1.5, -2.0, 0.0]), np.zeros(3), np.full(3, 1e-30), np.full(3, 1e30)):
        np.testing.assert_allclose(RULES[name](np.tile(one, (n, 1))), one, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("far", [1e3, 1e8, 1e30, -1e30])
@given(st.integers(0, 99), st.integers(5, 15))
def test_a_fifth_of_liars_cannot_leave_where_the_honest_are(name: str, far: float, seed: int, n: int) -> None:
    """However far they point, the answer stays within the honest updates' own reach."""
    honest = updates(seed, n - n // 5, 6)
    liars = np.full((n // 5, 6), far)
    liars[:, ::2] *= -1
    centre = honest.mean(axis=0)
    reach = np.linalg.norm(honest - centre, axis=1).max()
    out = RULES[name](np.concatenate([liars, honest]))
    assert np.linalg.norm(out - centre) <= 1.5 * reach


def test_control_the_mean_is_led_anywhere() -> None:
    honest = updates(0, 8, 6)
    assert np.linalg.norm(average()(np.concatenate([honest, np.full((2, 6), 1e8)]))) > 1e7


@pytest.mark.parametrize("name", [*RULES, "fltrust"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_files_and_whole_matrices_give_the_same(name, dtype, monkeypatch, tmp_path) -> None:
    """Rows in memory or mapped from a file, in one block or many: the same bytes for the same blocks, the
    same numbers for others.
    """
    rule, U = RULES.get(name) or fltrust(3), updates(1, 9, 5000, dtype)
    U.tofile(tmp_path / "updates")
    mapped = np.memmap(tmp_path / "updates", dtype, "r", shape=U.shape)
    whole = rule.walk(Stack.of(U, range(9)))
    assert np.array_equal(rule.walk(Stack.of(list(mapped), range(9))), whole)
    assert np.array_equal(mapped, U)
    monkeypatch.setattr(stack, "BLOCK", 1)  # then the least width
    np.testing.assert_allclose(rule.walk(Stack.of(U, range(9))), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cores", [1, 3])
def test_cores_change_nothing(cores: int, monkeypatch) -> None:
    U = updates(2, 7, 40_000, np.float32)
    monkeypatch.setattr(stack, "BLOCK", 1 << 13)
    want = {name: rule(U) for name, rule in RULES.items()}
    monkeypatch.setattr("atoll.learn.kernel.cores", lambda: cores)
    assert all(np.array_equal(rule(U), want[name]) for name, rule in RULES.items())


@given(st.integers(0, 999), st.integers(1, 7))
def test_a_mixed_stack_is_the_mixed_matrix(seed: int, n: int) -> None:
    rng, U = np.random.default_rng(seed), updates(seed, n, 8)
    a, b, w = rng.normal(size=(n, n)), rng.normal(size=(n, n)), rng.normal(size=n)
    ours, full = Stack.of(U).mixed(a).mixed(b), b @ a @ U
    np.testing.assert_allclose(ours.matrix(), full, atol=1e-9)
    np.testing.assert_allclose(ours.gram, full @ full.T, atol=1e-8)
    np.testing.assert_allclose(ours.combine(w), w @ full, atol=1e-9)
    np.testing.assert_allclose(ours.norms, np.linalg.norm(full, axis=1), atol=1e-6)


# -- against their definitions, written out ---------------------------------------------------


def test_medians_and_trimmed_means() -> None:
    for n, cut in itertools.product(range(1, 9), range(3)):
        U = updates(n, n, 30)
        np.testing.assert_allclose(median()(U), np.median(U, axis=0), rtol=1e-15)
        if n > 2 * cut:
            kept = np.sort(U, axis=0)[cut : n - cut]
            np.testing.assert_allclose(trimmed_mean(cut)(U), kept.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (10, 2), (10, 3), (11, 4)])
def test_krum_by_its_definition(n: int, f: int) -> None:
    for seed in range(20):
        U = updates(seed, n, 6)
        scores = []
        for i in range(n):
            far = sorted(float(np.square(U[i] - U[j]).sum()) for j in range(n) if j != i)
            scores.append(sum(far[: n - f - 2]))
        order = np.argsort(scores)
        np.testing.assert_allclose(krum(f)(U), U[order[0]], rtol=1e-12)
        np.testing.assert_allclose(multi_krum(f)(U), U[order[: n - f]].mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(multi_krum(f, m=2)(U), U[order[:2]].mean(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("n", "f"), [(3, 1), (8, 3), (10, 2)])
def test_nnm_by_its_definition(n: int, f: int) -> None:
    for seed in range(20):
        U = updates(seed, n, 6)
        near = [np.argsort(np.linalg.norm(U - row, axis=1))[: n - f] for row in U]
        mixed = np.stack([U[order].mean(axis=0) for order in near])
        np.testing.assert_allclose(nnm(f, median())(U), np.median(mixed, axis=0), rtol=1e-9, atol=1e-12)


def test_geometric_median_minimises_the_sum_of_distances() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        U = updates(seed, 9, 3)
        U[0] += 1000

        def far(v, U=U):
            return np.linalg.norm(U - v, axis=1).sum()

        fine = {"xatol": 1e-9, "fatol": 1e-9}
        best = optimize.minimize(far, U.mean(axis=0), method="Nelder-Mead", options=fine)
        ours = geometric_median()(U)
        assert far(ours) <= best.fun * (1 + 1e-9)
        np.testing.assert_allclose(ours, best.x, atol=1e-4)


def test_geometric_median_on_a_line_is_the_median() -> None:
    U = np.array([[0.0], [1.0], [5.0], [6.0], [100.0]])
    np.testing.assert_allclose(geometric_median()(U), [5.0], atol=1e-4)


def test_centred_clipping_by_its_definition() -> None:
    for seed in range(10):
        U = updates(seed, 7, 5)
        v = geometric_median()(U)
        for _ in range(2):
            far = np.linalg.norm(U - v, axis=1)
            v = v + ((U - v) * np.minimum(1, 1.3 / far)[:, None]).mean(axis=0)
        np.testing.assert_allclose(centred_clipping(tau=1.3, steps=2)(U), v, rtol=1e-9)
    np.testing.assert_allclose(centred_clipping(tau=1e9)(U), U.mean(axis=0), rtol=1e-9)


def test_norms_are_bounded() -> None:
    U = updates(3, 6, 5)
    norms = np.linalg.norm(U, axis=1)
    for bound in (0.5, 2.0, None):
        at = np.median(norms) if bound is None else bound
        cut = U * np.minimum(1, at / norms)[:, None]
        np.testing.assert_allclose(norm_bound(bound)(U), cut.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(norm_bound(bound, median())(U), np.median(cut, axis=0), rtol=1e-12)


def test_lengths_are_made_equal() -> None:
    U = updates(3, 6, 5)
    U[2] = 0
    norms = np.linalg.norm(U, axis=1)
    same = U * (np.median(norms) / np.where(norms > 0, norms, 1))[:, None]
    np.testing.assert_allclose(level(average())(U), same.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(level(median())(U), np.median(same, axis=0), rtol=1e-12)
    tiny = np.array([[1e-30, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(level(average())(tiny), [0, 2 / 3], atol=1e-7)


@pytest.mark.parametrize("n", [1, 3, 8, 10])
def test_an_answer_is_held_near_the_median(n: int) -> None:
    U, far = updates(n, n, 30), np.linspace(-5, 5, 30)
    centre = np.median(U, axis=0)
    off = np.median(np.abs(U - centre), axis=0)
    held = within(Rule("far", lambda stack: far))(U)
    np.testing.assert_allclose(held, np.clip(far, centre - off, centre + off), rtol=1e-12)
    np.testing.assert_array_equal(within(median())(U), median()(U))


def test_a_coordinate_that_few_touch_stays_alone() -> None:
    """The door of a backdoor: mixing lets it in, `within` does not."""
    U = np.concatenate([updates(1, 8, 40), updates(1, 2, 40)])
    U[:8, 0], U[8:, 0] = 0.0, 3.0
    mixed = nnm(0.2, trimmed_mean(0.2))
    assert abs(mixed(U)[0]) > 0.1
    assert within(mixed)(U)[0] == 0


def test_fltrust_by_its_definition() -> None:
    U = updates(4, 6, 5)
    U[2] = -U[0]  # against the root
    g = U[0]
    cos = [max(0.0, float(u @ g / np.linalg.norm(u) / np.linalg.norm(g))) for u in U[1:]]
    cut = [u * np.linalg.norm(g) / np.linalg.norm(u) for u in U[1:]]
    want = sum(c * u for c, u in zip(cos, cut, strict=True)) / sum(cos)
    np.testing.assert_allclose(fltrust(9).walk(Stack.of(U, [9, 1, 2, 3, 4, 5])), want, rtol=1e-9)
    alone = Stack.of(np.stack([g, -g, -2 * g]), [9, 1, 2])
    np.testing.assert_allclose(fltrust(9).walk(alone), g, rtol=1e-12)
    with pytest.raises(QuorumError, match="client 8, which sent none"):
        fltrust(8).walk(alone)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("f", [0.5, 0.9, -1, -0.1, 2.0, float("nan"), float("inf"), True, "2"])
@pytest.mark.parametrize("make", [trimmed_mean, krum, multi_krum, lambda f: nnm(f, average())])
def test_a_wrong_f_is_refused_with_what_is_right(make, f) -> None:
    with pytest.raises(ConfigError, match=r"how many clients may be malicious|share is below 0\.5"):
        make(f)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: multi_krum(0.2, m=0), lambda: centred_clipping(tau=0.0), lambda: centred_clipping(steps=0)),
        *(
            lambda: centred_clipping(tau=float("inf")),
            lambda: norm_bound(0.0),
            lambda: norm_bound(float("nan")),
        ),
        *(
            lambda: fltrust(-1),
            lambda: fltrust(True),
            lambda: robust(buckets=0),
            lambda: robust(momentum=1.0),
        ),
        lambda: robust(trimmed_mean(2), buckets=4),
    ],
)
def test_other_wrong_values_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_what_must_know_its_senders_is_refused_behind_a_mixture() -> None:
    for make in (lambda: nnm(0.2, fltrust(0)), lambda: robust(fltrust(0), buckets=3)):
        with pytest.raises(CompositionError, match=r"fltrust\(root=0\)"):
            make()
    assert norm_bound(then=fltrust(0)).knows == (0,)  # a scaled update is its sender's still
    assert within(level(fltrust(3))).knows == (3,)
    like = Update.of({"w": np.ones(3)})
    with pytest.raises(
        ConfigError, match=r"needs client 9 in every round, and this cohort lacks it: use every"
    ):
        Gather(level(fltrust(9))).at(points(like, 3), range(3), KEY)


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        *((trimmed_mean(2), 5), (krum(2), 7), (multi_krum(1), 5), (nnm(2, trimmed_mean(1)), 5)),
        *((nnm(1, krum(2)), 7), (norm_bound(then=krum(1)), 5)),
        *((within(krum(2)), 7), (level(krum(1)), 5)),
    ],
)
def test_too_few_updates_for_a_count_are_refused_before_and_after(rule: Rule, least: int) -> None:
    like = Update.of({"w": np.ones(3)})
    with pytest.raises(ConfigError, match=f"needs at least {least} updates a round, not {least - 1}"):
        Gather(rule).at(points(like, least - 1), range(least - 1), KEY)
    ours = Gather(rule).at(points(like, least), range(least), KEY)
    made = [(k, Reply(like.scale(k + 1.0))) for k in range(least)]
    assert ours.finish(fold(ours, made)).count == least
    with pytest.raises(QuorumError, match=f"needs at least {least} updates and {least - 1} came"):
        ours.finish(fold(ours, made[1:]))


@pytest.mark.parametrize(
    ("f", "n", "cut"), [(0.2, 10, 2), (0.2, 9, 2), (0.2, 4, 1), (0.2, 2, 0), (0.49, 3, 1)]
)
def test_a_share_is_rounded_up_as_far_as_it_goes(f: float, n: int, cut: int) -> None:
    U = updates(n, n, 4)
    np.testing.assert_array_equal(trimmed_mean(f)(U), trimmed_mean(cut)(U))


def test_a_share_that_krum_cannot_withstand_is_refused() -> None:
    assert krum(0.4)(updates(0, 7, 2)).shape == (2,)
    with pytest.raises(QuorumError, match="needs at least 7 updates and 5 came"):
        krum(0.4)(updates(0, 5, 2))


def test_what_no_rule_can_compare_is_refused_and_named() -> None:
    like = Update.of({"w": np.ones(3)})
    ours = Gather(median()).at(points(like, 3), range(3), KEY)
    for bad in (np.nan, np.inf, 1e200):
        with pytest.raises(ProtocolError, match="client 7's update is not finite"):
            ours.lift(7, Reply(like.scale(bad)))
    sparse = Update(like.layout, like.buffer, rows={"t": Rows(np.array([1]), np.ones((1, 2)))})
    with pytest.raises(ProtocolError, match=r"client 7 sent sparse rows of \['t'\]"):
        ours.lift(7, Reply(sparse))
    short = Gather(Rule("short", lambda s: np.zeros(1))).at(points(like, 3), range(3), KEY)
    with pytest.raises(MisuseError, match="this one gave"):
        short.finish(short.lift(0, Reply(like)))


# -- in jobs -----------------------------------------------------------------------------------


def test_a_job_file_names_rules_inside_rules() -> None:
    table = {"name": "nnm", "f": 0.3, "then": {"name": "trimmed_mean", "f": 2}}
    made = build("algorithm", {"name": "robust", "momentum": 0.9, "rule": table})
    assert str(made.rule.rule) == "nnm(f=0.3, then=trimmed_mean(f=2))"
    assert made.rule.rule.table == table
    assert str(made.chain) == "chain(mean(), momentum(0.9))"
    assert build("algorithm", {"name": "robust", "rule": "median"}).rule.rule == median()
    for wrong, path in (
        ({"name": "trimmed_mean", "f": 0.6}, r"\$\.rule: f as a share"),
        ({"name": "trimed_mean", "f": 0.2}, r"\$\.rule\.name: .*did you mean 'trimmed_mean'"),
        ({"name": "nnm", "f": 0.2, "then": {"name": "krum"}}, r"\$\.rule\.then\.f: this value is needed"),
    ):
        with pytest.raises(ConfigError, match=path):
            build("algorithm", {"name": "robust", "rule": wrong})


def first(updates):
    return updates[0]


def test_a_function_of_ones_own_goes_wherever_a_rule_does() -> None:
    """By its name, so that a job's description is the same in every process."""
    U = updates(0, 5, 4)
    norms = np.linalg.norm(U, axis=1)
    np.testing.assert_allclose(norm_bound(1e9, first)(U), U[0])
    np.testing.assert_allclose(level(first)(U), U[0] * np.median(norms) / norms[0])
    np.testing.assert_allclose(nnm(0, first)(U), U.mean(axis=0))
    made = "robust(rule=nnm(f=0.2, then=first()), momentum=0.0, buckets=None, set_aside=False)"
    assert str(robust(nnm(0.2, first))) == made
    assert "rule=lambda()" in str(robust(lambda updates: updates[0]))
    for wrong in ("median", 3, None):
        with pytest.raises(ConfigError, match="a rule is one by name"):
            nnm(0.2, wrong)


def test_a_share_counts_clients_also_behind_buckets() -> None:
    """A fifth of ten clients are two: of five buckets, two may be spoilt."""
    like = Update.of({"w": np.ones(4)})
    ours = Buckets(5, trimmed_mean(0.2)).at(points(like, 10, 1.0), range(10), KEY)
    bad = [c for c in range(10) if ours.place[c] in (0, 1)][:4]
    bad = [next(c for c in bad if ours.place[c] == b) for b in (0, 1)]
    made = [(c, Reply(like.scale(1000.0 if c in bad else 1.0))) for c in range(10)]
    np.testing.assert_allclose(ours.finish(fold(ours, made)).update.buffer, 1.0)
    with pytest.raises(ConfigError, match="needs at least 9 updates a round, not 5"):
        Buckets(5, trimmed_mean(0.2)).at(points(like, 20, 1.0), range(20), KEY)


def test_a_job_made_in_python_is_sent_with_its_rule() -> None:
    made = Job(softmax(lr=0.1), robust(nnm(0.3, trimmed_mean(2)), momentum=0.9, buckets=7))
    sent = table(made)
    assert sent["algorithm"]["rule"] == {"name": "nnm", "f": 0.3, "then": {"name": "trimmed_mean", "f": 2}}
    assert str(parse(sent).job.algorithm) == str(made.algorithm)
    own = Job(softmax(lr=0.1), Gather(lambda U: U[0]))
    with pytest.raises(ConfigError, match="code does not travel"):
        table(own)
