"""What must hold for every named algorithm: with learners as users have them, in any topology, resumed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.registry import build, parts
from atoll.job import Job, Tree
from atoll.learn.algorithm import Algorithm
from atoll.learn.dense import mlp
from atoll.learn.select import sample
from atoll.run import simulate
from atoll.simulate.faults import World, uniform

HEAD = {"fedper": {"head": "layer1"}, "fedrep": {"head": "layer1"}}
# moon and fedbn need a learner that knows its layers; asynchronous and tiered ones have their own tests
LEFT_OUT = {"newton", "moon", "fedbn", "fedbuff", "fedasync", "gossip", "hierarchical"}
NAMES = [p.name for p in parts("algorithm") if p.name not in LEFT_OUT]


class Shards(list[Any]):
    """Six clients of a three-class problem, each with mostly one class; test rows of their own."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        centres = 2 * rng.normal(size=(3, 5))
        for k in range(6):
            y = np.where(rng.random(30 + 5 * k) < 0.7, k % 3, rng.integers(0, 3, 30 + 5 * k))
            x = (centres[y] + rng.normal(size=(len(y), 5))).astype(np.float32)
            self.append(Rows(x, y))

    @property
    def tests(self) -> list[Any]:
        return list(self)


class Rows(SimpleNamespace):
    """x and y."""

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x=x, y=y)

    def __len__(self) -> int:
        return len(self.x)


DATA = Shards()
LEARNER = mlp((8,), features=5, outputs=3, lr=0.1, batch_size=10)


def job(name: str, **more: Any) -> Job:
    return Job(LEARNER, build("algorithm", {"name": name, **HEAD.get(name, {})}), rounds=6, every=3, **more)


def loss(run: Any) -> float:
    return float(np.mean([site["loss"] for site in run.sites.values()]))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_its_model_has_the_learners_leaves(name: str) -> None:
    run = simulate(job(name), DATA, seed=1)
    assert list(run.params) == ["layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"]
    first = float(np.mean([site["loss"] for site in run.history[0]["sites"].values()]))
    assert loss(run) < first
    assert not any(record.get("failed") for record in run.history)


@pytest.mark.parametrize("name", NAMES)
def test_any_topology_and_an_unreliable_world_give_the_same_bytes(name: str) -> None:
    plan = job(name, cohort=sample(count=4))
    flat = simulate(plan, DATA, seed=1)
    tree = simulate(plan.replace(topology=Tree((2, 2))), DATA, seed=1)
    rough = simulate(plan, DATA, seed=1, world=World(delay=uniform(0.01, 0.1), loss=0.2, repeat=0.1))
    assert tree.params == flat.params == rough.params
    assert tree.sites == flat.sites == rough.sites


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_undisturbed(name: str, tmp_path: Any) -> None:
    plan = job(name, cohort=sample(count=4))

    class CutOffError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["round"] == 4:
            raise CutOffError

    with pytest.raises(CutOffError):
        simulate(plan, DATA, seed=1, out=tmp_path, watch=stop)
    resumed = simulate(plan, DATA, seed=1, out=tmp_path, resume=True)
    straight = simulate(plan, DATA, seed=1)
    assert resumed.params == straight.params
    assert resumed.sites == straight.sites


def test_algorithms_in_a_job_file_are_checked() -> None:
    assert isinstance(build("algorithm", {"name": "fedprox", "mu": 0.1}), Algorithm)
    with pytest.raises(ConfigError, match=r"\$.muu: unknown key 'muu': did you mean 'mu'\?"):
        build("algorithm", {"name": "fedprox", "muu": 0.1})
