"""Personal models: what stays at home differs from client to client and is never sent."""

from dataclasses import dataclass

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.job import Job, prepare
from atoll.learn.algorithm import fedavg
from atoll.learn.ditto import ditto, fine_tune
from atoll.learn.personal import OWN, fedbn, fedper, fedrep, stay
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites, kept


@dataclass(frozen=True)
class Net(Quadratic):
    """Leaves body, norm and head, of which it can say what they are for."""

    names: tuple[str, ...] = ("body", "norm", "head")
    size: int = 1

    def norm_leaves(self):
        return frozenset({"norm"})

    def head_leaves(self):
        return frozenset({"head"})


ONES = np.ones(3)
SITES = Sites(
    [Bowl(ONES, [1.0, 2.0, 3.0], rows=2), Bowl(ONES, [-1.0, -2.0, -3.0], rows=6), Bowl(ONES, [4.0, 4.0, 4.0])]
)


def private(job, folder):
    """The run, and the private leaves of each client after it."""
    run, state = kept(job, SITES, folder)
    return run, [state.committed[k].learner.own for k in range(len(SITES))]


@pytest.mark.parametrize(
    ("algorithm", "leaf"),
    [(fedbn(), "norm"), (fedper(), "head"), (fedper("he"), "head"), (fedrep(), "head")],
    ids=str,
)
def test_what_stays_differs_and_is_not_sent(algorithm, leaf, tmp_path) -> None:
    job = Job(Net(), algorithm, rounds=60, every=60)
    run, homes = private(job, tmp_path)
    assert [list(home) for home in homes] == [[leaf]] * 3
    at = Net().names.index(leaf)
    # every client trains its own leaf to its own optimum ...
    np.testing.assert_allclose([home[leaf][0] for home in homes], [c.b[at] for c in SITES], rtol=1e-6)
    # ... the coordinator's stays as it was, the shared ones are the weighted mean of the optima
    assert run.params[leaf].tolist() == [0.0]
    shared = [i for i in range(3) if i != at]
    mean = np.average([c.b for c in SITES], axis=0, weights=[c.rows for c in SITES])
    np.testing.assert_allclose(run.params.buffer[shared], mean[shared], rtol=1e-6)
    # two of three numbers go up: nothing else does
    everything = simulate(job.replace(algorithm=fedavg()), SITES).traffic
    assert run.traffic.up * 3 == everything.up * 2


def test_private_leaves_leave_under_no_name() -> None:
    params = Update.of({"body": np.ones(2), OWN + "head": np.ones(3)})
    part = stay()
    sent, _ = part.out(params, None, Context(Rng.of(0)))
    assert list(sent) == ["body"]
    back, _ = part.back(sent, part.init(params), Context(Rng.of(0)))
    assert back["body"].tolist() == [1.0, 1.0]
    assert back[OWN + "head"].tolist() == [0.0, 0.0, 0.0]
    assert list(part.outgoing(params)) == ["body"]


def test_sites_are_evaluated_with_their_own_leaves() -> None:
    # with head and body fitted at home, only what the shared norm leaf costs remains
    run = simulate(Job(Net(), fedper("head"), rounds=60, every=60), SITES)
    gaps = np.array([c.b for c in SITES])[:, :2] - run.params.buffer[:2]
    expected = 0.5 * (gaps**2).sum(axis=1)
    np.testing.assert_allclose([run.sites[k]["loss"] for k in range(3)], expected, rtol=1e-6)


def test_fedrep_moves_the_head_first_and_then_the_body() -> None:
    seen = []

    class Spy(Net):
        def fit(self, params, data, ctx):
            seen.append(([n for n in self.names if ctx.moves(n)], params["head"].tolist()))
            return super().fit(params, data, ctx)

    simulate(Job(Spy(steps=1), fedrep(), rounds=1), SITES[:1])
    # the body's turn starts from the head that the first turn made: one step of 0.1 towards 3
    assert seen == [(["head"], [0.0]), (["body", "norm"], [pytest.approx(0.3)])]


def test_learners_that_name_no_leaves_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fedbn asks for norm_leaves\(\), which Quadratic does not have"):
        fedbn().wrap(Quadratic())
    with pytest.raises(ConfigError, match=r"fedper asks for head_leaves\(\).*name the head, as in head="):
        fedper().wrap(Quadratic())
    with pytest.raises(ConfigError, match="this model has none"):
        fedbn().wrap(type("Bare", (Net,), {"norm_leaves": lambda self: frozenset()})())


def personal_models(lam, learner, folder, rounds=40):
    run, homes = private(Job(learner, ditto(lam), rounds=rounds, every=rounds), folder)
    return run, [home.buffer for home in homes]


def test_ditto_without_a_tie_is_local_training_and_leaves_fedavg_alone(tmp_path) -> None:
    learner = Net(lr=0.1, steps=10)
    run, models = personal_models(0.0, learner, tmp_path)
    np.testing.assert_allclose(models, [c.b for c in SITES], rtol=1e-9)
    assert run.params == simulate(Job(learner, fedavg(), rounds=40), SITES).params


def test_ditto_with_a_tight_tie_is_the_global_model(tmp_path) -> None:
    # the optimum of F + lam/2 ||v - w||² lies (b - w) / (1 + lam) away from w
    lam = 999.0
    learner = Net(lr=1e-3, steps=3000)
    run, models = personal_models(lam, learner, tmp_path, rounds=6)
    away = [(np.array(c.b) - run.params.buffer) / (1 + lam) for c in SITES]
    np.testing.assert_allclose(models - run.params.buffer, away, atol=1e-6)
    assert np.abs(models - run.params.buffer).max() < 0.01


def test_ditto_evaluates_each_site_with_its_own_model() -> None:
    run = simulate(Job(Net(lr=0.1, steps=10), ditto(0.0), rounds=40, every=40), SITES)
    assert max(site["loss"] for site in run.sites.values()) < 1e-12
    with pytest.raises(ConfigError, match="lam must be at least 0"):
        ditto(-1)


def test_fine_tuning_starts_from_the_final_model_and_changes_nothing_shared() -> None:
    learner = Net(lr=0.1, steps=2)
    plain = simulate(Job(learner, fedavg(), rounds=5), SITES)
    tuned = simulate(Job(learner, fine_tune(times=3), rounds=5), SITES)
    assert tuned.params == plain.params
    # three times two steps of rate 0.1 leave 0.9^6 of the way to b
    gaps = np.array([c.b for c in SITES]) - plain.params.buffer
    expected = 0.5 * (0.9**12 * gaps**2).sum(axis=1)
    np.testing.assert_allclose([tuned.sites[k]["loss"] for k in range(3)], expected, rtol=1e-9)
    with pytest.raises(ConfigError, match="times must be at least 1"):
        fine_tune(0)


def test_a_private_model_keeps_the_learners_own_state(tmp_path) -> None:
    class Counting(Net):
        def fit(self, params, data, ctx):
            c = super().fit(params, data, ctx)
            c.state = (ctx.state or 0) + 1
            return c

    for algorithm, turns in ((fedper("head"), 1), (fedrep("head"), 2), (ditto(), 1)):
        _, state = kept(Job(Counting(), algorithm, rounds=3), SITES, tmp_path / algorithm.name)
        assert [state.committed[k].learner.inner for k in range(3)] == [3 * turns] * 3


def test_wrapped_learners_answer_for_their_inner_ones() -> None:
    learner = Net()
    object.__setattr__(learner, "parallel", "threads")
    wrapped = prepare(Job(learner, fedper("head")), SITES)
    assert wrapped.parallel == "threads"
    assert not hasattr(wrapped, "chunk")


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no leaf stays at its client: choose from body, norm, head"):
        simulate(Job(Net(), fedper("tail"), rounds=1), SITES)
