"""Synchronous rounds in every kind of trouble: no contribution is lost, used twice or mixed up, and
where everybody answers in the end the model is bit for bit that of the undisturbed run.
"""

import math

import numpy as np
import pytest

from atoll.core.errors import QuorumError
from atoll.core.rng import Rng
from atoll.core.transform import chain
from atoll.job import Job, flat, tree
from atoll.learn.algorithm import fedadam
from atoll.learn.buffered import fedasync, fedbuff
from atoll.learn.robust import Buckets, Gather
from atoll.learn.select import Choice, sample
from atoll.learn.server import mean
from atoll.run import simulate
from atoll.simulate.faults import Crash, World, lognormal
from tests.worlds.cases import CLIENTS, SAME, SLOW, Drift, Tally, chaos, clients, last_records

TREES = {"flat": flat(), "two edges": tree((2,)), "three levels": tree((2, 2))}
EDGES = {"flat": [], "two edges": [".0", ".1"], "three levels": [".0", ".1", ".0.0", ".0.1", ".1.0", ".1.1"]}
RULES = {
    "median": Gather(lambda U: np.median(U, axis=0)),
    "buckets": Buckets(3, lambda U: np.median(U, axis=0)),
}


def drift(**values):
    return Job(Drift(), rounds=6, cohort=sample(0.75), **values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("trouble", SAME)
def test_a_disturbed_run_ends_with_the_model_of_the_undisturbed_one(trouble, shape, seed):
    job = drift()
    calm = simulate(job, clients(), seed)
    run = simulate(job.replace(topology=TREES[shape]), clients(), seed, world=SAME[trouble])
    assert run.params == calm.params
    assert run.sites == calm.sites
    assert [r["train"] for r in last_records(run.history)[1:]] == [r["train"] for r in calm.history[1:]]


@pytest.mark.parametrize("algorithm", [fedadam(lr=0.1), *RULES.values()], ids=["fedadam", *RULES])
def test_flat_and_trees_are_the_same_bytes_for_every_rule(algorithm):
    runs = [simulate(drift(algorithm=algorithm, topology=shape), clients(), 5) for shape in TREES.values()]
    runs.append(
        simulate(drift(algorithm=algorithm, topology=tree((3, 1, 2))), clients(), 5, world=World(**SLOW))
    )
    assert all(run.params == runs[0].params for run in runs)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers):
    job = drift()
    job.learner.parallel = "threads"
    job.learner.chunk = 2
    run = simulate(job, clients(), 3, workers=workers)
    assert run.params == simulate(drift(), clients(), 3).params


@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("seed", range(25))
def test_in_chaos_every_used_contribution_is_used_once_and_its_client_knows(seed, shape):
    names = ["coordinator", *(f"client{i}" for i in range(CLIENTS)), *EDGES[shape]]
    count_all(
        Job(Tally(), chain(mean(over=1)), rounds=8, topology=TREES[shape], deadline=15.0),
        chaos(seed, names),
        seed,
    )


@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("seed", range(25))
def test_in_chaos_a_buffer_takes_every_contribution_once(seed, shape):
    """FedBuff without staleness weights, so that every contribution counts 1."""
    names = ["coordinator", *(f"client{i}" for i in range(CLIENTS)), *EDGES[shape]]
    whole = fedbuff(size=3, concurrency=4, staleness="constant", lr=3.0, max_staleness=2)  # lr / size = 1
    count_all(Job(Tally(), whole, rounds=10, topology=TREES[shape], deadline=15.0), chaos(seed, names), seed)


def count_all(job, world, seed):
    """Run and check: versions rise by one, every contribution counted is in the model, once."""
    try:
        run = simulate(job, clients(), seed, world=world)
    except QuorumError:
        return  # nobody answered in time three rounds in a row: the run ends loudly, half-done
    records = last_records(run.history)
    assert [r["round"] for r in records] == list(range(job.rounds + 1))
    assert run.params["times"].sum() == sum(r["clients"] for r in records[1:])
    for record in run.history:
        assert not [why for why in record.get("failed", {}).values() if "Error" in why]
        assert all(site["behind"] == 0 for site in record.get("sites", {}).values())


@pytest.mark.parametrize(
    "algorithm",
    [None, fedbuff(size=3, concurrency=4), fedasync(concurrency=3)],
    ids=["rounds", "fedbuff", "fedasync"],
)
def test_same_seed_same_trace_and_another_seed_another(algorithm):
    names = ["coordinator", *(f"client{i}" for i in range(CLIENTS))]
    job = (
        Job(Drift(), rounds=6, deadline=9.0)
        if algorithm is None
        else Job(Drift(), algorithm, rounds=6, deadline=9.0)
    )
    runs = [simulate(job, clients(), seed, world=chaos(4, names)) for seed in (1, 1, 2)]
    assert runs[0].history == runs[1].history
    assert runs[0].params == runs[1].params
    assert runs[0].history != runs[2].history


def test_a_client_that_crashes_is_missing_from_its_round_only():
    world = World(crashes=(Crash("client3", 0.5, 0.1),), compute=lognormal(0.0, 0.0))
    run = simulate(Job(Drift(), rounds=3), clients(), 0, world=world)
    assert [r.get("failed") for r in run.history] == [None, {3: "crashed"}, {}, {}]


def test_an_edge_that_crashes_takes_its_clients_answers_with_it():
    world = World(crashes=(Crash(".0", 0.5, 0.1),), compute=lognormal(0.0, 0.0))
    run = simulate(Job(Drift(), rounds=3, topology=tree((2,))), clients(), 0, world=world)
    assert [r.get("failed") for r in run.history] == [None, dict.fromkeys([0, 2, 4, 6], "crashed"), {}, {}]


def test_dropped_out_clients_are_named_and_the_rest_is_averaged():
    run = simulate(Job(Drift(), rounds=10), clients(), 0, world=World(dropout=0.3))
    failed = [r["failed"] for r in run.history[1:]]
    assert {why for f in failed for why in f.values()} == {"dropped out"}
    assert all(r["clients"] + len(r["failed"]) == CLIENTS for r in run.history[1:])


def test_over_selection_takes_the_first_and_waits_for_nobody():
    job = Job(Drift(), rounds=5, cohort=sample(count=4, over=1.5), sites=False)
    fast, slow = (
        simulate(j, clients(), 1, world=World(**SLOW)) for j in (job, job.replace(cohort=sample(count=6)))
    )
    assert [r["clients"] for r in fast.history[1:]] == [4] * 5
    assert set(fast.history[1]["failed"].values()) == {"not needed"}
    assert fast.seconds < slow.seconds


@pytest.mark.parametrize("topology", [flat(), tree((2,))], ids=["lane", "edges"])
def test_over_selection_needs_no_world(topology):
    run = simulate(Job(Drift(), rounds=2, cohort=sample(count=4, over=1.5), topology=topology), clients(), 1)
    assert run.history[-1]["clients"] == 6


@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("cut", range(6))
def test_a_run_resumed_from_any_checkpoint_is_bit_identical(tmp_path, cut, shape):
    class CutError(Exception):
        pass

    def watch(record):
        if record["round"] == cut + 1:
            raise CutError

    job = drift(topology=TREES[shape], algorithm=fedadam(lr=0.1))
    whole = simulate(job, clients(), 1)
    with pytest.raises(CutError):
        simulate(job, clients(), 1, out=tmp_path / "run", watch=watch)
    again = simulate(job, clients(), 1, out=tmp_path / "run", resume=True)
    assert again.params == whole.params
    assert again.sites == whole.sites
    assert [r["train"] for r in again.history[1:]] == [r["train"] for r in whole.history[1:]]


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize("over", [1.05, 1.1, 1.3, 1.5, 1.9, 2.5])
def test_over_selection_asks_just_enough_and_needs_what_was_wanted(count, over):
    """By count and by fraction, also where the clients are too few to ask for more."""
    population = 40
    for cohort in (sample(count=count, over=over), sample(count / population, over=over)):
        asked = asked_of(cohort, population)
        assert asked == min(population, math.ceil(round(count * over, 6)))
        if asked < population or cohort.count:
            assert cohort.quorum(asked) == count


def asked_of(cohort, population):
    """How many clients a cohort picks."""
    choice = Choice(range(population), None, Rng.of(0), None)
    with pytest.raises(StopIteration) as done:
        cohort.pick(choice).send(None)
    return len(done.value.value)
