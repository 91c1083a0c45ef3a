"""HierFAVG (Liu, Zhang, Song, Letaief 2020, alg. 1) on bowls, against the paper's equations in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.registry import build
from atoll.job import Job, Tree, flat, tree
from atoll.learn.algorithm import fedavg
from atoll.learn.hierarchical import heavier, hierarchical
from atoll.learn.stop import early
from atoll.run import simulate
from atoll.simulate.faults import World, uniform
from tests.exact.quadratic import Bowl, Quadratic, Sites

LR, STEPS = 0.1, 3  # kappa_1 local steps
RNG = np.random.default_rng(4)
BOWLS = Sites(
    Bowl(RNG.uniform(0.5, 2.0, 2), RNG.normal(size=2), rows=int(RNG.integers(1, 9))) for _ in range(7)
)


def local(w: Any, bowl: Bowl) -> Any:
    for _ in range(STEPS):
        w = w - LR * bowl.a * (w - bowl.b)
    return w


def average(models: list[Any], rows: list[int]) -> Any:
    return sum(r * w for r, w in zip(rows, models, strict=True)) / sum(rows)


def tier(w: Any, members: list[int], fanout: tuple[int, ...], kappa: int) -> tuple[Any, int]:
    """A node's model and rows: an edge's after `kappa` rounds below it, the same at every level."""
    if not fanout:
        below = [(local(w, BOWLS[i]), BOWLS[i].rows) for i in members]
    else:
        groups = [members[i :: fanout[0]] for i in range(fanout[0])]
        below = []
        for group in groups:
            at, rows = w, 0
            for _ in range(kappa):
                at, rows = tier(at, group, fanout[1:], kappa)
            below.append((at, rows))
    return average([m for m, _ in below], [r for _, r in below]), sum(r for _, r in below)


def run(topology: Tree, rounds: int = 4, **values: Any) -> Any:
    job = Job(Quadratic(LR, STEPS), hierarchical(**values), rounds=rounds, topology=topology)
    return simulate(job, BOWLS)


@pytest.mark.parametrize("kappa", [1, 2, 3])
@pytest.mark.parametrize("fanout", [(1,), (2,), (3,), (2, 2), (3, 1, 2)])
def test_it_is_the_papers_algorithm(fanout: tuple[int, ...], kappa: int) -> None:
    w = np.zeros(2)
    for _ in range(4):
        w, _ = tier(w, list(range(7)), fanout, kappa)
    np.testing.assert_allclose(run(tree(fanout), edge_rounds=kappa).params["w"], w, rtol=1e-10)


def test_one_edge_of_everybody_is_fedavg_of_as_many_rounds() -> None:
    whole = simulate(Job(Quadratic(LR, STEPS), fedavg(), rounds=12), BOWLS)
    np.testing.assert_allclose(run(tree((1,)), edge_rounds=3).params["w"], whole.params["w"], rtol=1e-12)


def test_one_edge_round_is_fedavg_and_so_is_a_cloud_without_edges() -> None:
    whole = simulate(Job(Quadratic(LR, STEPS), fedavg(), rounds=4), BOWLS)
    np.testing.assert_allclose(run(tree((3,)), edge_rounds=1).params["w"], whole.params["w"], rtol=1e-12)
    assert run(flat(), edge_rounds=5).params == whole.params


def test_metrics_say_how_many_rounds_the_edges_made_and_traffic_counts_every_tier() -> None:
    record = run(tree((2,)), rounds=1, edge_rounds=3).history[-1]
    assert record["train"]["edge_rounds"] == 3.0
    assert record["clients"] == 7
    model = 2 * 8
    assert record["down"] == model * (2 + 3 * 7)
    assert record["up"] == model * (2 + 3 * 7)


def test_a_rough_world_and_a_restart_change_nothing(tmp_path: Any) -> None:
    whole = run(tree((2,)), edge_rounds=2)
    job = Job(Quadratic(LR, STEPS), hierarchical(edge_rounds=2), rounds=4, topology=tree((2,)))
    rough = simulate(job, BOWLS, world=World(delay=uniform(0.01, 0.1), loss=0.2, repeat=0.1))
    assert rough.params == whole.params

    class CutOffError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["round"] == 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        simulate(job, BOWLS, out=tmp_path, watch=stop)
    assert simulate(job, BOWLS, out=tmp_path, resume=True).params == whole.params


# -- between tiers, FedBuff ---------------------------------------------------------------------


@pytest.mark.parametrize("fanout", [(2,), (3,)])
def test_a_buffer_of_all_edges_is_the_mean_of_their_changes(fanout: tuple[int, ...]) -> None:
    """In an instant world nobody is stale: w += lr / K Σ_l (w_l - w), each edge the same say."""
    w = np.zeros(2)
    for _ in range(4):
        groups = [list(range(7))[i :: fanout[0]] for i in range(fanout[0])]
        ends = []
        for group in groups:
            at = w
            for _ in range(2):
                at = average([local(at, BOWLS[i]) for i in group], [BOWLS[i].rows for i in group])
            ends.append(at)
        w = w + 0.5 * np.mean([e - w for e in ends], axis=0)
    found = run(tree(fanout), edge_rounds=2, asynchronous=True, size=fanout[0], lr=0.5)
    np.testing.assert_allclose(found.params["w"], w, rtol=1e-10)
    assert found.history[-1]["staleness"] == 0.0
    assert found.history[-1]["train"]["edge_rounds"] == 2.0


def test_an_edge_that_comes_back_late_counts_less() -> None:
    """One edge at a time is taken while the other flies: ages are 0, then 1, as for two clients."""
    w, models = np.zeros(2), {}
    groups = {0: [0, 2, 4, 6], 1: [1, 3, 5]}
    found = run(tree((2,)), rounds=5, edge_rounds=2, asynchronous=True, size=1, exponent=1.0)
    assert [r["staleness"] for r in found.history[1:]] == [0, 1, 1, 1, 1]
    ends = []
    for first in (0, 1):  # who is drawn first
        w, age, order = np.zeros(2), 0, [first, 1 - first] * 3
        models = {0: w, 1: w}
        for turn in range(5):
            who = order[turn]
            at = models[who]
            for _ in range(2):
                at = average([local(at, BOWLS[i]) for i in groups[who]], [BOWLS[i].rows for i in groups[who]])
            age = 0 if turn == 0 else 1
            w = w + (at - models[who]) / (1 + age)
            models[who] = w
        ends.append(w)
    assert min(np.abs(found.params["w"] - e).max() for e in ends) < 1e-10


def test_in_a_job_file() -> None:
    made = build("algorithm", {"name": "hierarchical", "edge_rounds": 3, "offline": "continue", "extra": 2})
    assert str(made) == "hierarchical(edge_rounds=3, offline=continue, extra=2)"
    made = build("algorithm", {"name": "hierarchical", "asynchronous": True, "size": 3})
    assert "asynchronous=True" in str(made)
    for wrong in ({"edge_rounds": 0}, {"offline": "go on"}, {"extra": 0}, {"size": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError):
            build("algorithm", {"name": "hierarchical", **wrong})
    with pytest.raises(ConfigError, match="cannot fill a buffer of 3"):
        run(tree((2,)), asynchronous=True, size=3)


def test_the_best_round_is_kept_under_a_stop_rule() -> None:
    job = Job(
        Quadratic(LR, STEPS), hierarchical(), rounds=30, topology=tree((2,)), stop=early("loss", patience=2)
    )
    found = simulate(job, BOWLS)
    assert found.stopped and len(found.history) < 31


def test_an_edge_may_weigh_as_much_as_all_its_clients() -> None:
    """Beyond `max_weight` of one client nothing is cut, and the sums stay in range."""
    from atoll.core.aggregate import Reply, Sum, points
    from atoll.core.rng import Rng
    from atoll.core.update import Update

    like = Update.of({"w": np.ones(4, np.float32)})
    p = points(like, 40, max_weight=8.0)
    ours = Sum().at(heavier(p, 10), range(4), Rng.of(0))
    largest = like.scale(4096.0)  # the headroom
    total = ours.finish(ours.lift_all([(k, Reply(largest, 80.0)) for k in range(4)]))
    assert (total.weight, float(total.update["w"][0]) / total.weight) == (320.0, 4096.0)
    cut = Sum().at(p, range(4), Rng.of(0)).lift(0, Reply(like, 80.0))
    assert cut.weight == 8 * 2**32  # control
    assert heavier(p, 1) is p
