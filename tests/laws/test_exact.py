"""Laws of the exact methods: how rows lie on sites, trees and bad networks change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from atoll.core.errors import CodecError, ConfigError, DataError, MisuseError, QuorumError
from atoll.core.metrics import Mean, from_plain, to_plain
from atoll.core.registry import build
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.data import Sites
from atoll.data.examples import Examples
from atoll.job import Job, tree
from atoll.learn.categories import MOST, Tally
from atoll.learn.exact import close, exact
from atoll.learn.lloyd import Lloyd, lloyd
from atoll.learn.newton import Newton, exact_newton, newton, newton_learner, shortest
from atoll.learn.order import Order, descend
from atoll.run import simulate
from atoll.simulate.faults import World, uniform
from atoll.statistics import ask, moments, order_statistics
from atoll.testing import check_metric

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=FLOATS), st.integers(1, 4), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_quantile_of_any_floats_is_exact(values, pieces, share):
    found, _ = order_statistics(np.array_split(values[:, None], pieces), 1, (share,))
    ordered = np.sort(values + 0.0)
    place = (len(values) - 1) * share
    low, high = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    if low == high:
        assert found[0, 0] == low
    elif np.isfinite(high - low):
        assert low <= found[0, 0] <= high


MAGNITUDES = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(2, 30), st.just(3)), elements=MAGNITUDES), st.randoms()
)
@settings(max_examples=40, deadline=None)
def test_moments_do_not_depend_on_where_rows_lie(x, random):
    cuts = sorted(random.randrange(len(x) + 1) for _ in range(3))
    one, _ = moments([x], 3)
    many, _ = moments(np.split(x, cuts), 3)
    scale = np.abs(x).max(axis=0) + 1e-300
    np.testing.assert_allclose(many.mean / scale, one.mean / scale, atol=1e-14)
    spread = np.sqrt(one.scatter.diagonal()) + 1e-14 * scale * len(x)
    np.testing.assert_allclose(
        many.scatter / spread[:, None] / spread, one.scatter / spread[:, None] / spread, atol=1e-12
    )


RNG = np.random.default_rng(5)
X = RNG.normal(size=(120, 3))
Y = (X @ [1.0, -2.0, 0.5] + RNG.normal(size=120) > 0).astype(int)
SITES = [Examples(X[i::7], Y[i::7]) for i in range(7)]
METHODS = {
    "newton": Job(newton_learner("logistic", 3), exact_newton(l2=0.1), rounds=20, max_weight=1.0),
    "lloyd": Job(Lloyd(X[:4]), exact(lloyd(), still=close(1e-12)), rounds=30, max_weight=1.0),
    "order": Job(Order(3, (0.1, 0.5)), exact(descend((0.1, 0.5))), rounds=8, max_weight=1.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_trees_and_bad_networks_give_the_same_bytes(name):
    job = METHODS[name]
    flat = simulate(job, SITES, seed=1)
    assert simulate(job.replace(topology=tree((2, 2))), SITES, seed=1).params == flat.params
    lossy = World(delay=uniform(0.01, 0.1), loss=0.2, repeat=0.1)
    assert simulate(job, SITES, seed=1, world=lossy).params == flat.params
    assert simulate(job, SITES[::-1], seed=1).params == flat.params


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(name, tmp_path):
    class CutError(Exception):
        pass

    def cut(record):
        if record["round"] == 2:
            raise CutError

    whole = simulate(METHODS[name], SITES, seed=1)
    with pytest.raises(CutError):
        simulate(METHODS[name], SITES, seed=1, out=tmp_path / "run", watch=cut)
    again = simulate(METHODS[name], SITES, seed=1, out=tmp_path / "run", resume=True)
    assert again.params == whole.params
    assert len(again.history) == len(whole.history)


def test_a_missing_site_ends_an_exact_run():
    class Absent(Newton):
        def fit(self, params, data, ctx):
            if ctx.client == 2:
                raise DataError("the disk is gone")
            return super().fit(params, data, ctx)

    with pytest.raises(QuorumError, match="1 of 7 did not answer: DataError: the disk is gone"):
        ask(Absent(3, 1, "logistic"), SITES, newton())


def test_steps_that_raise_the_loss_are_halved():
    # log cosh w: from |w| > 1.09 plain Newton jumps farther and farther to the other side
    step = newton()
    w = Update.of({"w": np.array([[2.0]])})
    state, halved, last = step.init(w), 0, np.inf
    for turn in range(40):
        at = float(w["w"][0, 0])
        value = float(np.logaddexp(at, -at))
        halved, last = (halved + 1, last) if value > last else (halved, value)
        sums = {"loss": [value], "gradient": [-np.tanh(at)], "hessian": [[1 / np.cosh(at) ** 2]]}
        move, state = step.back(Update.of(sums), state, Context(Rng.of(0), turn))
        w = w + move
    assert halved > 0
    assert abs(w["w"][0, 0]) < 1e-12


def test_a_job_of_named_parts_takes_its_width_from_the_sites():
    rows = load_breast_cancer()
    x = (rows.data - rows.data.mean(axis=0)) / rows.data.std(axis=0)
    parts = [(x[i::5], rows.target[i::5]) for i in range(5)]
    job = Job(build("learner", "newton"), build("algorithm", {"name": "newton", "l2": 1.0}), rounds=20)
    run = simulate(job, Sites.of(parts, parts))
    best = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12).fit(x, rows.target)
    np.testing.assert_allclose(run.params["w"], best.coef_, atol=1e-6)  # with the default max_weight, too
    assert run.metrics["accuracy"] == pytest.approx(best.score(x, rows.target))
    assert run.stopped == "the model stands still"


def test_collinear_columns_take_the_shortest_step():
    x = np.column_stack([X[:, 0], X[:, 0], X[:, 1]])
    run = ask(Newton(3, 1, "squared"), [Examples(x, Y.astype(float))], newton(), rounds=2)
    w = run.params["w"][0]
    assert w[0] == pytest.approx(w[1])
    best = np.linalg.lstsq(np.column_stack([x, np.ones(120)]), Y, rcond=None)[0]
    np.testing.assert_allclose(w, best[:3], atol=1e-12)


def test_the_shortest_step_without_curvature_is_no_step():
    assert shortest(np.zeros((2, 2)), np.ones(2)).tolist() == [0, 0]


def test_squared_loss_is_solved_by_the_first_step():
    run = ask(Newton(3, 1, "squared"), [Examples(X, X @ [1.0, 2.0, 3.0] + 4)], newton(), rounds=1)
    np.testing.assert_allclose(run.params["w"][0], [1, 2, 3], atol=1e-12)
    assert run.params["b"][0] == pytest.approx(4)


def test_an_empty_cluster_stays_where_it_is():
    far = np.array([[0.0, 0, 0], [900.0, 0, 0]])
    run = ask(Lloyd(far), [X], lloyd(), rounds=3)
    assert run.params["centres"][1].tolist() == [900, 0, 0]
    np.testing.assert_allclose(run.params["centres"][0], X.mean(axis=0), atol=1e-12)


def test_labels_nobody_declared_are_refused():
    with pytest.raises(QuorumError, match=r"whole numbers in 0\.\.1"):
        ask(Newton(3, 1, "logistic"), [Examples(X, Y + 1)], newton())


@pytest.mark.parametrize("wrong", [lambda: newton(-1.0), lambda: close(-1), lambda: newton_learner("cubic")])
def test_wrong_values_are_refused_before_anything_runs(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_a_learner_of_unknown_width_is_refused():
    with pytest.raises(ConfigError, match="pass features="):
        simulate(Job(newton_learner(), exact_newton()), SITES)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.text(max_size=5),
    st.floats(allow_nan=True),
    st.just("1"),
)


@given(st.lists(VALUES, max_size=20), st.lists(VALUES, max_size=20))
def test_tallies_merge_as_one_and_travel(a, b):
    both = Tally(a).merge(Tally(b))
    assert to_plain(both) == to_plain(Tally(b).merge(Tally(a)))
    assert sum(both.value.values()) == len(a) + len(b)
    assert to_plain(from_plain(to_plain(both))) == to_plain(both)


WRONG = [
    [0, *b"int:1"],
    [1, *b"int:x"],
    [1, *b"odd:1"],
    [1, *b"float:1.5"],
    [1, *b"float:0x1p0"],
    [1, 300],
    [True],
    [1, "a"],
]


@pytest.mark.parametrize("entry", WRONG)
def test_a_tally_reads_nothing_it_did_not_write(entry):
    with pytest.raises(CodecError):
        from_plain(["tally", entry])


def test_a_tally_is_a_metric():
    check_metric(lambda rng: Tally(rng.choice(["a", "b", "é", 1, 2.5, None, np.nan], 5)))
    check_metric(lambda rng: Tally(rng.choice(np.array([1, 2.5, np.nan, np.inf]), 5)))


def test_a_tally_is_bounded_and_merges_only_tallies():
    with pytest.raises(DataError, match="categories"):
        Tally(range(MOST + 1))
    with pytest.raises(MisuseError, match="merge tally with Mean"):
        Tally([1]).merge(Mean(1.0))
