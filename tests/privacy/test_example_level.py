"""Privacy for single rows: gradients clipped one by one, rows drawn by secret coins, accounted as drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import CompositionError, ConfigError, DataError, PrivacyError
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.transform import Context, Transform, chain
from atoll.core.update import Update
from atoll.learn.exchange import Seat
from atoll.learn.local import Local
from atoll.learn.per_row import PerRow
from atoll.privacy import dp
from atoll.privacy.accountant import Release, epsilon

LEARNERS = {
    "softmax": at.softmax(dtype="float64").sized(5, 3),
    "logistic": at.logistic(dtype="float64").sized(5, 2),
    "linear": at.linear(dtype="float64").sized(5, 2),
    "relu": at.mlp((7, 4), dtype="float64").sized(5, 3),
    "tanh": at.mlp((6,), activation="tanh", dtype="float64").sized(5, 3),
}


class Rows(NamedTuple):
    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


def some(name: str, n: int = 60) -> Rows:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 5))
    if name == "linear":
        return Rows(x, rng.normal(size=(n, 2)))
    return Rows(x, rng.integers(0, 2 if name == "logistic" else 3, n))


def start(learner: at.Learner) -> Update:
    first = Update.of(learner.init(np.random.default_rng(1)))
    return Update(first.layout, first.buffer + np.random.default_rng(2).normal(0, 0.3, first.layout.size))


def one_row(learner, params: Update, rows: Rows, i: int) -> np.ndarray:
    """Minus the gradient of one row: the step of rate 1 that training takes on it alone."""
    one = replace(learner, lr=1.0, epochs=1, batch_size=None)
    alone = Rows(rows.x[i : i + 1], rows.y[i : i + 1])
    return one.fit(params, alone, FitContext(Rng.of(0))).update.buffer


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("norm", [0.05, 1.0, 1e9])
def test_the_sum_is_that_of_rows_clipped_one_by_one(name: str, norm: float) -> None:
    learner, rows = LEARNERS[name], some(name)
    params, total = start(learner), 0.0
    for i in range(len(rows)):
        g = one_row(learner, params, rows, i)
        total = total + g * min(1.0, norm / np.linalg.norm(g))
    found = learner.clipped(params, rows, norm)
    assert found.layout == params.layout
    np.testing.assert_allclose(found.buffer, total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LEARNERS)
def test_no_row_changes_the_sum_by_more(name: str) -> None:
    learner, rows = LEARNERS[name], some(name, 20)
    params, norm = start(learner), 0.3
    whole = learner.clipped(params, rows, norm)
    for i in range(len(rows)):
        fewer = Rows(np.delete(rows.x, i, axis=0), np.delete(rows.y, i, axis=0))
        assert (whole - learner.clipped(params, fewer, norm)).norm() <= norm * (1 + 1e-9)
    assert learner.clipped(params, Rows(rows.x[:0], rows.y[:0]), norm).norm() == 0


def test_bad_rows_are_refused() -> None:
    learner = LEARNERS["softmax"]
    with pytest.raises(DataError, match="outside the model's classes"):
        learner.clipped(start(learner), Rows(np.zeros((1, 5)), np.array([3])), 1.0)
    with pytest.raises(DataError, match="NaN or infinity"):
        learner.clipped(start(learner), Rows(np.full((2, 5), np.nan), np.array([1, 2])), 1.0)


DATA = at.partition(at.load_data("digits"), clients=5, seed=2)
JOB = at.Job(at.softmax(), at.fedavgm(lr=1.0, momentum=0.5), rounds=5, every=5, sites=False)
ASKED = {"epsilon": 5.0, "delta": 1e-5, "clip": 1.0, "unit": "example", "rate": 0.3, "population": 1437}


def test_a_job_for_rows() -> None:
    job = JOB.private(**ASKED)
    plan = job.epsilon()
    assert plan.epsilon == plan.known == pytest.approx(5.0, rel=2e-3)
    assert plan.epsilon == epsilon([Release(job.privacy.sigma, 0.3, 5)], 1e-5)
    run = at.simulate(job, DATA, seed=4)
    assert run.metrics["accuracy"] > 0.6
    assert run.params == at.simulate(job, DATA, seed=4).params
    assert all(r.get("train", {}) == {} for r in run.history)
    again = at.simulate(job.replace(topology=at.tree((2,))), DATA, seed=4)
    assert again.params == run.params


def test_the_noise_is_on_the_sum_over_all_sites() -> None:
    """One round at rate 1 against the clipped sum without noise."""
    job = JOB.replace(rounds=1, every=1).private(**{**ASKED, "epsilon": 500.0, "rate": 1.0}, sigma=3.0)
    run = at.simulate(job, DATA, seed=4)
    learner = job.learner.sized(64, 10)
    zero = Update.of(learner.init(np.random.default_rng(0)))
    whole = sum(learner.clipped(zero, rows, 1.0).buffer.astype(float) for rows in DATA)
    off = run.params.buffer * 1437 - whole
    assert off.std() == pytest.approx(3.0, rel=0.1)
    assert abs(off.mean()) < 5 * 3.0 / np.sqrt(650)


def test_rows_are_drawn_by_the_sites_own_coins() -> None:
    """Neither the job's seed nor the round's key tells which; the same coins draw the same rows again."""

    class Seen:
        x = np.zeros((1000, 5))
        y = np.arange(1000)

    drawn = []

    class Spy:
        def clipped(self, params, data, norm):
            drawn.append(np.asarray(data.y))
            return Update.of({"w": np.zeros(1)})

    chain = dp.private(at.chain(at.mean()), 1.0, 1.0, at.mean(over=100.0), rows=True)
    algorithm = at.Algorithm("rows", chain, wrap=PerRow(0.2, 1.0), weigh="equal")
    params = Update.of({"w": np.zeros(1)})
    for coins, round_, seed in ((b"a" * 32, 0, 1), (b"a" * 32, 0, 2), (b"b" * 32, 0, 1), (b"a" * 32, 1, 1)):
        seat = Seat(np.random.default_rng(0).bytes, coins=coins)
        local = Local(PerRow(0.2, 1.0)(Spy()), algorithm, {0: Seen()}, {}, Rng.of(seed), raw=True, seat=seat)
        local.answer(at_task(round_, params))
    same, other_seed, other_coins, next_round = drawn
    assert (same == other_seed).all()
    assert 140 < len(same) < 260
    for far in (other_coins, next_round):
        assert len(np.intersect1d(same, far)) < 80, "as two independent draws share"


def at_task(round_: int, params: Update):
    from atoll.core.edge import Task

    return Task(round_, Rng.of(7), (0,), (-1,), params)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rate": None}, ConfigError, "needs rate"),
        ({"rate": 1.5}, ConfigError, "needs rate"),
        ({"population": None}, ConfigError, "population"),
        ({"unit": "client"}, ConfigError, "rate is the chance of a row"),
        ({"unit": "row"}, ConfigError, '"example"'),
        ({"delta": 0.01}, ConfigError, "not below 1/1437"),
        ({"sigma": 0.1}, PrivacyError, "claims epsilon 5"),
    ],
)
def test_promises_for_rows_that_mean_nothing(change, error, words: str) -> None:
    with pytest.raises(error, match=words):
        JOB.private(**{**ASKED, **change})


def test_what_cannot_clip_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="everyone"):
        JOB.replace(cohort=at.poisson(0.5)).private(**ASKED)
    with pytest.raises(CompositionError, match="changes how clients train"):
        JOB.replace(algorithm=at.fedprox(mu=0.1)).private(**ASKED)
    with pytest.raises(CompositionError, match="cannot clip the gradients of single rows"):
        at.simulate(JOB.replace(learner=at.newton_learner()).private(**ASKED), DATA)
    with pytest.raises(PrivacyError, match="one example's data"):
        at.simulate(JOB.private(**{**ASKED, "delta": 9e-4, "population": 1000}), DATA)


CHANGING = {
    "int8": at.int8(),
    "int2": at.int2(),
    "sign": at.sign(),
    "topk": at.topk(0.1),
    "randomk": at.randomk(0.5),
    "rotate": chain(at.rotate(), at.int8()),
}


def compact(codec: Transform) -> at.Job:
    return JOB.replace(algorithm=at.small(at.fedavgm(lr=1.0, momentum=0.5), up=codec))


def outgoing(job: at.Job) -> Transform:
    """What a client's sum goes through before it meets noise."""
    steps = job.trained.chain.steps
    noise = next(i for i, step in enumerate(steps) if isinstance(step, dp.Gaussian))
    return chain(*steps[:noise])


@pytest.mark.parametrize("codec", CHANGING)
def test_what_one_row_changes_is_not_changed_before_the_noise(codec: str) -> None:
    """An int2 of a sum of clipped gradients moves by eight clips where one row comes or goes."""
    learner = JOB.learner.sized(64, 10)
    params, rows, clip = start(learner), DATA[0], 0.2

    def sent(through: Transform, data: Rows) -> np.ndarray:
        total = learner.clipped(params, data, clip)
        return through.out(total, through.start(params, "out"), Context(Rng.of(1)))[0].buffer.astype(float)

    def apart(through: Transform) -> float:
        fewer = [Rows(np.delete(rows.x, i, 0), np.delete(rows.y, i)) for i in range(8)]
        return max(float(np.linalg.norm(sent(through, rows) - sent(through, few))) for few in fewer)

    if codec != "randomk":  # what it leaves out comes in later rounds
        assert apart(chain(CHANGING[codec])) > 1.05 * clip, "the codec alone, before any noise"
    job = compact(CHANGING[codec])
    for more in ({}, {"exchange": at.secure_sum()}):
        with pytest.raises(CompositionError, match='leave it out, or say noise="local"'):
            job.private(**{**ASKED, "clip": clip}, **more).trained  # noqa: B018
    local = job.private(**{**ASKED, "clip": clip}, noise="local")
    assert apart(outgoing(local)) <= clip * (1 + 1e-5)
    run = at.simulate(local.replace(rounds=2, every=2), DATA, seed=4)
    assert run.history[-1]["round"] == 2


@pytest.mark.parametrize(
    "algorithm", [at.robust(momentum=0.9), at.chain(at.mean(), at.momentum(0.9))], ids=["robust", "chain"]
)
def test_momentum_is_not_of_one_round(algorithm) -> None:
    with pytest.raises(CompositionError, match="changes sums of clipped gradients"):
        JOB.replace(algorithm=algorithm).private(**ASKED).trained  # noqa: B018


def test_under_masks_the_clients_add_the_noise() -> None:
    """Without any amplification, which the bound of whole-number noise does not have."""
    few = {**ASKED, "epsilon": 8.0, "rate": 1.0}
    job = JOB.replace(rounds=1, every=1).private(**few, exchange=at.secure_sum())
    assert job.privacy.noise == "distributed"
    run = at.simulate(job, DATA, seed=4)
    learner = job.learner.sized(64, 10)
    zero = Update.of(learner.init(np.random.default_rng(0)))
    whole = sum(learner.clipped(zero, rows, 1.0).buffer.astype(float) for rows in DATA)
    off = run.params.buffer * 1437 - whole
    assert off.std() == pytest.approx(job.privacy.sigma * np.sqrt(5 / 4), rel=0.1)
    sigmas = [JOB.private(**{**ASKED, "rate": r}, exchange=at.secure_sum()).privacy.sigma for r in (0.3, 1.0)]
    assert sigmas[0] == sigmas[1]


def test_torch_modules_clip_rows_as_well() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    torch.manual_seed(0)
    rng = np.random.default_rng(5)
    rows = Rows(rng.normal(size=(30, 1, 8, 8)).astype(np.float32), rng.integers(0, 4, 30))
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    learner = at.torch_learner(net, lr=1.0, batch_size=None)
    params = Update.of(learner.init(np.random.default_rng(0)))
    total = 0.0
    for i in range(len(rows)):
        g = one_torch(learner, params, rows, i)
        total = total + g * min(1.0, 0.5 / np.linalg.norm(g))
    np.testing.assert_allclose(learner.clipped(params, rows, 0.5).buffer, total, rtol=1e-4, atol=1e-5)
    odd = at.torch_learner(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4)))
    with pytest.raises(CompositionError, match="BatchNorm"):
        odd.clipped(Update.of(odd.init(np.random.default_rng(0))), rows, 1.0)


def one_torch(learner, params: Update, rows: Rows, i: int) -> np.ndarray:
    alone = Rows(rows.x[i : i + 1], rows.y[i : i + 1])
    return learner.fit(params, alone, FitContext(Rng.of(0))).update.buffer
