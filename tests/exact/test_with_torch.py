"""FedBN and MOON with the PyTorch learner, which knows its layers; the others with its optimisers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from atoll.adapt.torch import torch_learner  # noqa: E402
from atoll.core.errors import ConfigError  # noqa: E402
from atoll.job import Job  # noqa: E402
from atoll.learn.algorithm import fedavg  # noqa: E402
from atoll.learn.feddyn import feddyn  # noqa: E402
from atoll.learn.fednova import fednova  # noqa: E402
from atoll.learn.fedprox import fedprox  # noqa: E402
from atoll.learn.moon import moon  # noqa: E402
from atoll.learn.personal import fedbn, fedper  # noqa: E402
from atoll.learn.scaffold import scaffold  # noqa: E402
from atoll.run import simulate  # noqa: E402
from tests.exact.quadratic import kept  # noqa: E402


def net(*, norm: bool = False) -> Any:
    layers = [torch.nn.Linear(5, 8), *([torch.nn.BatchNorm1d(8)] if norm else []), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))


class Rows(SimpleNamespace):
    """x and y."""

    def __len__(self) -> int:
        return len(self.x)


class Shifted(list[Any]):
    """Four clients whose features stand at different places and scales."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        centres = 2 * rng.normal(size=(3, 5))
        for k in range(4):
            y = rng.integers(0, 3, 40)
            x = (k + 1) * (centres[y] + rng.normal(size=(40, 5))) + 3 * k
            self.append(Rows(x=x.astype(np.float32), y=y))

    @property
    def tests(self) -> list[Any]:
        return list(self)


DATA = Shifted()


def learner(**more: Any) -> Any:
    return torch_learner(net, lr=0.05, batch_size=10, **more)


def loss(run: Any) -> float:
    return float(np.mean([site["loss"] for site in run.sites.values()]))


def test_fedbn_keeps_what_belongs_to_each_site(tmp_path: Any) -> None:
    ours = torch_learner(lambda: net(norm=True), lr=0.05, batch_size=10)
    assert ours.norm_leaves()
    job = Job(ours, fedbn(), rounds=8, every=8)
    run, state = kept(job, DATA, tmp_path)
    homes = [state.committed[k].learner.own for k in range(4)]
    assert all(set(home) == set(ours.norm_leaves()) for home in homes)
    means = [home[next(n for n in home if n.endswith("running_mean"))] for home in homes]
    assert all(np.abs(means[i] - means[j]).max() > 0.1 for i in range(4) for j in range(i))
    # every client's own statistics fit its own rows better than an average of them does
    shared = simulate(job.replace(algorithm=fedavg()), DATA)
    assert loss(run) < loss(shared)
    private = sum(home[name].size for home in homes for name in home) // 4
    assert run.traffic.up == shared.traffic.up - 8 * 4 * 4 * private  # rounds, clients, bytes
    assert list(run.params) == list(shared.params)


def test_moon_starts_as_fedavg_and_then_differs() -> None:
    job = Job(learner(), moon(mu=5.0), rounds=1)
    plain = job.replace(algorithm=fedavg())
    first, first_plain = simulate(job, DATA), simulate(plain, DATA)
    # without a previous model of its own a client has no term
    np.testing.assert_allclose(first.params.buffer, first_plain.params.buffer, atol=1e-5)
    third, third_plain = (simulate(j.replace(rounds=3), DATA) for j in (job, plain))
    assert np.abs(third.params.buffer - third_plain.params.buffer).max() > 1e-4
    zero = simulate(job.replace(rounds=3, algorithm=moon(mu=0.0)), DATA)
    np.testing.assert_allclose(zero.params.buffer, third_plain.params.buffer, atol=1e-5)


@pytest.mark.parametrize("algorithm", [scaffold(), feddyn(0.1), fedprox(0.1), fednova(), fedper()], ids=str)
def test_others_learn_with_it(algorithm: Any) -> None:
    run = simulate(Job(learner(), algorithm, rounds=6, every=6), DATA)
    first = float(np.mean([site["loss"] for site in run.history[0]["sites"].values()]))
    assert loss(run) < first
    assert not any(record.get("failed") for record in run.history)


def test_optimisers_whose_steps_a_formula_does_not_know_are_refused() -> None:
    adam = torch_learner(net, lr=0.01, optimizer="adam")
    for algorithm in (scaffold(), fednova()):
        with pytest.raises(ConfigError, match=r"adam|SGD"):
            simulate(Job(adam, algorithm, rounds=1), DATA)
    with pytest.raises(ConfigError, match="schedule='cosine'"):
        simulate(Job(replace(learner(), schedule="cosine"), scaffold(), rounds=1), DATA)
