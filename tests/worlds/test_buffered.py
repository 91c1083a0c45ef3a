"""FedBuff and FedAsync: their formulas on cases worked out by hand, and clients that never come back."""

from itertools import permutations

import numpy as np
import pytest

from atoll.core.aggregate import Reply, Sum, fold, points
from atoll.core.errors import ConfigError, QuorumError
from atoll.core.message import Contribution
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.job import Job, tree
from atoll.learn.buffered import fedasync, fedbuff, staleness_weight
from atoll.learn.select import power_of_choice, sample
from atoll.run import simulate
from atoll.simulate.faults import Crash, Partition, World, constant
from tests.worlds.cases import SAME, SLOW, Drift, clients

T = 7  # server steps


class Ones:
    """Every update is 1, whatever the model."""

    def init(self, rng):
        return {"w": np.zeros(1)}

    def fit(self, params, data, ctx):
        return Contribution({"w": np.ones(1)}, weight=1 + ctx.client)

    def evaluate(self, params, data, ctx):
        return {}


class Target(Ones):
    """Every client's model is 3, so its update is what its model lacked."""

    def fit(self, params, data, ctx):
        return Contribution({"w": 3.0 - params["w"]}, weight=1 + ctx.client)


def end(learner, algorithm, rounds=T, world=None, **values):
    return simulate(Job(learner, algorithm, rounds=rounds, **values), clients(), 0, world=world)


# In an instant world clients come back in the order they went out: with c in flight and a buffer of
# one, an update is c - 1 steps old, but for the first c - 1.


@pytest.mark.parametrize("flying", [1, 2, 3])
def test_fedbuff_adds_lr_over_size_times_the_weighted_updates(flying):
    run = end(Ones(), fedbuff(size=1, concurrency=flying, lr=0.5))
    ages = [min(t, flying - 1) for t in range(T)]
    assert [r["staleness"] for r in run.history[1:]] == ages
    assert run.params["w"][0] == pytest.approx(0.5 * sum((1 + age) ** -0.5 for age in ages), abs=1e-9)


def test_fedbuff_divides_by_the_size_and_not_by_the_sum_of_weights():
    run = end(Ones(), fedbuff(size=2, concurrency=4))
    assert [r["ages"] for r in run.history[1:]] == [[2], [0, 2], *[[0, 1, 1]] * (T - 2)]
    assert run.params["w"][0] == pytest.approx(1 + 2**-0.5 + (T - 2) * (2**-0.5 + 3**-0.5) / 2, abs=1e-9)


@pytest.mark.parametrize("flying", [1, 2, 3])
def test_fedasync_mixes_the_clients_model_with_weights_that_sum_to_one(flying):
    run = end(Target(), fedasync(lr=0.5, concurrency=flying))
    far = np.prod([1 - 0.5 * (1 + min(t, flying - 1)) ** -0.5 for t in range(T)])
    assert run.params["w"][0] == pytest.approx(3 * (1 - far), abs=1e-9)


def test_fedasync_that_takes_everything_ends_at_the_clients_model():
    assert end(Target(), fedasync(lr=1.0, concurrency=1), rounds=1).params["w"][0] == pytest.approx(
        3.0, abs=1e-9
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("polynomial", [1, 4**-0.25, 5**-0.25, 10**-0.25]),
        ("hinge", [1, 1, 1, 1 / (0.25 * 5 + 1)]),
    ],
)
def test_the_weights_of_stale_updates(kind, expected):
    weight = staleness_weight(kind, 0.25, 4)
    assert [weight(tau) for tau in (0, 3, 4, 9)] == pytest.approx(expected)


def test_updates_that_are_too_old_are_dropped_counted_and_their_clients_used_again():
    run = end(Ones(), fedbuff(size=1, concurrency=3, max_staleness=1))
    assert sum(r["dropped"] for r in run.history[1:]) > 0
    assert all(len(r["ages"]) <= 2 and r["clients"] == 1 for r in run.history[1:])


def test_the_order_in_which_a_buffer_filled_does_not_matter():
    rng = np.random.default_rng(0)
    model = Update.of({"w": rng.normal(size=9).astype(np.float32)})
    rule = Sum().at(points(model, 4, 1.0), (), Rng.of(0))
    replies = [(i, Reply(Update(model.layout, rng.normal(size=9)), (1 + i) ** -0.5)) for i in range(4)]
    totals = {rule.finish(fold(rule, order)).update.buffer.tobytes() for order in permutations(replies)}
    assert len(totals) == 1


def test_no_more_than_concurrency_are_ever_in_flight():
    run = end(Ones(), fedbuff(size=2, concurrency=4), world=World(**SLOW))
    sent = [r["down"] // 8 for r in run.history[1:]]
    assert sent[0] == 4 + 1  # those in flight, and one for the first that came back
    assert sum(sent) == 4 + 2 * T - 1


def test_the_cohort_says_how_many_are_in_flight_unless_concurrency_does():
    first = [
        end(Ones(), fedbuff(size=1, **c), cohort=sample(0.5)).history[1]["down"] // 8
        for c in ({}, {"concurrency": 2})
    ]
    assert first == [4, 2]


def test_dead_clients_never_block():
    never = 1e9
    dead = tuple(Crash(f"client{i}", 0.5, never) for i in range(3))
    cut = (Partition(frozenset({"client3", "client4"}), 0.5, never),)
    run = end(
        Drift(),
        fedbuff(size=3, concurrency=5),
        world=World(**SLOW, crashes=dead, partitions=cut),
        deadline=30.0,
    )
    assert run.history[-1]["round"] == T
    assert {"crashed", "deadline"} <= {why for r in run.history[1:] for why in r["failed"].values()}


def test_clients_without_rows_take_no_place_in_the_buffer():
    class Sparse(Ones):
        def fit(self, params, data, ctx):
            return Contribution({"w": np.ones(1)}, weight=float(ctx.client > 2))

    run = end(Sparse(), fedbuff(size=3, concurrency=8, staleness="constant"))
    assert run.params["w"][0] == pytest.approx(T, abs=1e-9)
    assert {why for r in run.history[1:] for why in r["failed"].values()} == {"its contribution has weight 0"}


def test_clients_that_all_fail_end_the_run():
    class Broken(Ones):
        def fit(self, params, data, ctx):
            raise ValueError("no")

    with pytest.raises(
        QuorumError, match=r"(?s)24 answers in a row contributed nothing.*in fit.*ValueError: no"
    ):
        end(Broken(), fedbuff(size=3, concurrency=5))


def test_clients_that_all_have_nothing_to_weigh_end_the_run():
    class Empty(Ones):
        def fit(self, params, data, ctx):
            return Contribution({"w": np.ones(1)}, weight=0.0)

    with pytest.raises(QuorumError, match=r"(?s)24 answers in a row contributed nothing.*has weight 0"):
        end(Empty(), fedbuff(size=3, concurrency=5))


@pytest.mark.parametrize("world", [None, World(**SLOW)], ids=["instant", "slow"])
def test_evaluation_takes_no_time_and_changes_nothing(world):
    often, seldom = (
        end(Drift(), fedbuff(size=3, concurrency=5), world=world, every=every) for every in (1, T)
    )
    assert often.params == seldom.params
    assert often.seconds == seldom.seconds
    assert (often.seconds > 0) == (world is not None)
    assert often.sites == seldom.sites


def test_edges_pass_tasks_on():
    worlds = [
        end(Drift(), fedbuff(size=3, concurrency=5), world=World(**SLOW), topology=t)
        for t in (tree((2,)), tree((2, 2)))
    ]
    assert all(
        run.params == end(Drift(), fedbuff(size=3, concurrency=5), world=World(**SLOW)).params
        for run in worlds
    )


@pytest.mark.parametrize("trouble", SAME)
def test_it_goes_on_in_every_kind_of_trouble(trouble):
    run = end(Drift(), fedbuff(size=3, concurrency=5), world=SAME[trouble])
    assert run.history[-1]["round"] == T
    assert run.params.finite()


@pytest.mark.parametrize("algorithm", [fedbuff(size=3, concurrency=5), fedasync(concurrency=3)], ids=str)
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_cut_off_run_goes_on_bit_for_bit(tmp_path, algorithm, cut):
    class CutError(Exception):
        pass

    def watch(record):
        if record["round"] == cut + 1:
            raise CutError

    job = Job(Drift(), algorithm, rounds=T)
    whole = simulate(job, clients(), 1)
    with pytest.raises(CutError):
        simulate(job, clients(), 1, out=tmp_path / "run", watch=watch)
    again = simulate(job, clients(), 1, out=tmp_path / "run", resume=True)
    assert again.params == whole.params
    assert [r["ages"] for r in again.history[1:]] == [r["ages"] for r in whole.history[1:]]


def test_the_model_is_found_without_waiting_for_slow_clients():
    slow = World(compute=constant(1.0), partitions=(Partition(frozenset({"client0"}), 0.0, 100.0),))
    run = end(Ones(), fedbuff(size=1, concurrency=8), world=slow, rounds=20)
    assert run.seconds == pytest.approx(3.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fedbuff(size=0),
        lambda: fedbuff(concurrency=0),
        lambda: fedbuff(lr=0.0),
        lambda: fedbuff(exponent=-1.0),
        lambda: fedbuff(staleness="exponential"),
        lambda: fedasync(lr=1.5),
        lambda: fedasync(lr=0.0),
        lambda: end(Ones(), fedbuff(size=9)),
        lambda: end(Ones(), fedbuff(size=2), cohort=power_of_choice(2, 4)),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(wrong):
    with pytest.raises(ConfigError):
        wrong()
