"""What a job leaks: rows and labels from updates and their sums, members from models; and not under noise."""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.adapt.torch import torch_learner
from atoll.attack import Leak, leaks, memberships
from atoll.attack.invert import CLEAR, first, inverted, labels, private, psnr, together, towards
from atoll.attack.match import matched, slope
from atoll.attack.membership import others, threshold
from atoll.attack.pictures import png, write
from atoll.attack.watch import released, summed
from atoll.control import cli
from atoll.core.errors import ConfigError, StateError
from atoll.core.message import Contribution, FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data import Dataset, Examples, Sites, iid, load_data, partition
from atoll.job import Job
from atoll.learn.algorithm import fedavg, fedavgm
from atoll.learn.defend import robust
from atoll.learn.dense import mlp, softmax
from atoll.learn.secure import secure_sum

LEARNERS = {"mlp": mlp((100,), lr=0.1), "softmax": softmax(lr=0.1), "longer": mlp((100,), lr=0.05, epochs=5)}


@cache
def sites() -> Any:
    pytest.importorskip("sklearn")
    return partition(load_data("digits"), clients=20, by=iid(), seed=1)


@cache
def found(learner: str) -> dict[tuple[str, int], Leak]:
    """By protection and clients; of one round, for which the noise is least."""
    job = Job(LEARNERS[learner], rounds=1, sites=False)
    return {(leak.protection.split(",")[0], leak.clients): leak for leak in leaks(job, sites(), seed=2)}


@pytest.mark.parametrize("learner", LEARNERS)
def test_one_row_is_read_from_an_update_and_from_a_sum_of_one(learner: str) -> None:
    for protection in ("none", "secure sum"):
        leak = found(learner)[protection, 1]
        assert leak.psnr > 60
        assert (leak.clear, leak.labels) == (1.0, 1.0)
        assert leak.guessed is not None and leak.guessed < 0.4


def test_a_secure_sum_alone_does_not_hide_the_rows_of_few() -> None:
    """The more are summed the less is shown; of ten it is still most rows, with a hidden layer or without."""
    wide, flat = (
        {n: found(name)["secure sum", n] for n in (2, 5, 10, 20, 50)} for name in ("mlp", "softmax")
    )
    assert wide[10].clear > 0.5
    assert wide[20].clear > 0.1
    assert wide[50].clear < 0.5 * wide[10].clear
    assert flat[2].clear > 0.5
    assert flat[10].clear > 0.3
    assert flat[50].clear < 0.1
    assert all(leak.labels > 0.7 for leak in (*wide.values(), *flat.values()))  # type: ignore[operator]


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("n", [1, 2, 5, 10, 20, 50])
def test_noise_of_epsilon_2_leaves_nothing_better_than_the_mean_image(learner: str, n: int) -> None:
    leak = found(learner)["noise", n]
    assert leak.psnr < leak.mean_image + 1
    assert leak.clear == 0
    assert leak.labels is not None and leak.guessed is not None
    assert leak.labels < max(leak.guessed, 0.1) + 3 * np.sqrt(0.25 / 40)


def test_the_noise_that_clients_add_hides_as_well() -> None:
    job = Job(LEARNERS["mlp"], rounds=1, sites=False).private(
        epsilon=2.0, delta=1e-5, clip=1.0, exchange=secure_sum()
    )
    noisy = [leak for leak in leaks(job, sites(), (3, 10)) if leak.protection.startswith("noise")]
    assert [leak.protection for leak in noisy] == ["noise and secure sum, epsilon 2"] * 2
    assert all(leak.psnr < leak.mean_image + 1 for leak in noisy)


def test_control_noise_that_is_next_to_none_hides_nothing() -> None:
    """The same code finds the rows behind a promise that is worth nothing."""
    job = Job(LEARNERS["mlp"], rounds=1, sites=False).private(epsilon=1e5, delta=1e-5, clip=0.05, sigma=0.004)
    weak = [leak for leak in leaks(job, sites(), (1,)) if leak.protection.startswith("noise")]
    assert weak[0].psnr > weak[0].mean_image + 3
    assert weak[0].labels == 1.0


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_rows_of_convolutions_are_found_by_their_gradients(activation: str) -> None:
    """No layer shows them; where updates have noise nothing is found."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def net() -> Any:
        act = torch.nn.ReLU if activation == "relu" else torch.nn.Sigmoid
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), act(), torch.nn.Conv2d(8, 8, 3, padding=1, stride=2), act(),
            torch.nn.Flatten(), torch.nn.Linear(128, 10),
        )  # fmt: skip

    digits = load_data("digits").train
    images = Examples(np.asarray(digits.x, np.float32).reshape(-1, 1, 8, 8) / 16, digits.y)
    data = Sites.of([(images.x[i::8], images.y[i::8]) for i in range(8)])
    job = Job(torch_learner(net, lr=0.1), rounds=1, sites=False)
    made = {(leak.protection[:5], leak.clients): leak for leak in leaks(job, data, (1, 2))}
    for way, n in (("none", 1), ("secur", 1), ("secur", 2)):
        assert made[way, n].psnr > (CLEAR if n == 1 else made[way, n].mean_image + 2)
        assert made[way, n].labels == 1.0
    for n in (1, 2):
        assert made["noise", n].psnr < made["noise", n].mean_image + 1


# -- its parts ----------------------------------------------------------------------------------


def test_a_neuron_shows_its_row_whichever_way_the_weights_lie() -> None:
    x, d = np.arange(1.0, 6), np.array([0.5, 0.0, -2.0])
    for weight in (np.outer(x, d), np.outer(d, x)):
        layer = first(Update.of({"w": weight, "b": d}), 5)
        np.testing.assert_allclose(inverted(*layer), [x, x])  # the neuron that did not move shows nothing
        np.testing.assert_allclose(together(*layer), x)
    assert (inverted(np.zeros((5, 3)), np.zeros(3)) == 0).all()
    with pytest.raises(ConfigError, match="no dense layer reads the 7 numbers"):
        first(Update.of({"w": np.ones((5, 3)), "b": np.ones(3)}), 7)


def test_labels_are_counted() -> None:
    for y in ([3], [0, 0, 3], [1, 1, 1, 2, 4, 4]):
        gain = np.bincount(y, minlength=10) - len(y) / 10  # minus the gradient, at even answers
        np.testing.assert_array_equal(labels(Update.of({"w": np.ones(2), "b": 0.3 * gain}), len(y)), y)
    assert labels(Update.of({"w": np.ones(2), "b": np.array([0.2])}), 1) == [1]
    assert len(labels(Update.of({"w": np.ones(2), "b": np.zeros(4)}), 6)) == 6


def seen_of(layers: list[Any], y: Any, x: Any, activation: str) -> list[Any]:
    """Minus the gradients' sum, by the learner itself."""
    *below, w, _ = layers
    hidden = (below[0].shape[1],) if below else ()
    learner = mlp(hidden, lr=1.0, batch_size=None, activation=activation, dtype="float64") if below else None
    learner = learner or softmax(lr=1.0, batch_size=None, dtype="float64")
    sized = learner.sized(x.shape[1], w.shape[1])
    params = Update.of({f"layer{i // 2}.{('weight', 'bias')[i % 2]}": leaf for i, leaf in enumerate(layers)})
    return list(sized.fit(params, Examples(x, y), FitContext(Rng.of(0))).update.scale(len(y)).values())


def layers_of(rng: Any, *dims: int) -> list[Any]:
    pairs = [(rng.uniform(-1, 1, (a, b)), rng.uniform(-1, 1, b)) for a, b in pairwise(dims)]
    return [leaf / np.sqrt(dims[0]) for pair in pairs for leaf in pair]


@pytest.mark.parametrize(("dims", "activation"), [((6, 3), "relu"), ((6, 4, 3), "tanh"), ((6, 9, 3), "relu")])
def test_the_slope_of_the_mismatch_is_its_derivative(dims: tuple[int, ...], activation: str) -> None:
    rng = np.random.default_rng(0)
    layers, x, y = layers_of(rng, *dims), rng.normal(size=(2, 6)), np.array([0, 2])
    aim = np.concatenate([rng.normal(size=leaf.size) for leaf in layers])
    target = [part.reshape(leaf.shape) for part, leaf in zip(_parted(aim, layers), layers, strict=True)]

    def mismatch(at: Any) -> float:
        g = np.concatenate([leaf.ravel() for leaf in seen_of(layers, y, at, activation)])
        return 0.5 * float(np.square((g @ aim) / (g @ g) * g - aim).sum())

    want = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        want[place] = (mismatch(x + step) - mismatch(x - step)) / 2e-6
    np.testing.assert_allclose(slope(layers, target, y, x, activation), want, atol=1e-7)


def _parted(flat: Any, layers: list[Any]) -> list[Any]:
    return np.split(flat, np.cumsum([leaf.size for leaf in layers])[:-1])


def test_rows_are_found_by_matching_what_was_seen_of_their_sum() -> None:
    """Two rows, with a hidden layer of both kinds and without, up to a factor."""
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 16)), np.array([1, 4])
    for dims, activation in (((16, 6), "relu"), ((16, 12, 6), "tanh")):
        layers = layers_of(rng, *dims)
        seen = [0.37 * leaf for leaf in seen_of(layers, y, x, activation)]
        found = matched(
            layers, seen, y, 0.5 + 0.05 * rng.normal(size=x.shape), (0.0, 1.0), activation, steps=600
        )
        assert all(psnr(row, made, 1.0) > 40 for row, made in zip(x, found, strict=True))


def test_decibels() -> None:
    assert psnr(np.ones(4), np.ones(4) * 0.9, 1.0) == pytest.approx(20)
    assert psnr(np.ones(4), np.ones(4), 1.0) == 99
    mean, x = np.zeros(4), np.ones(4)
    np.testing.assert_array_equal(towards(x, -x, mean), mean)
    np.testing.assert_allclose(towards(x, 5 * x, mean), x)


def test_a_sum_is_the_same_in_integers() -> None:
    made = {c: Contribution({"w": np.full(5, c - 1.5)}, weight=c + 1.0) for c in range(4)}
    job = Job(softmax(lr=0.1), fedavg())
    plain, hidden = (
        summed(each.trained, made, Rng.of(0)) for each in (job, job.replace(exchange=secure_sum()))
    )
    np.testing.assert_allclose(plain.update.buffer, hidden.update.buffer, atol=1e-4)
    assert (plain.weight, plain.count) == (10, 4) and hidden.weight == pytest.approx(10)
    step = released(job.trained, made, Rng.of(0), population=4)
    np.testing.assert_allclose(step.buffer, plain.update.buffer / 10)


def test_jobs_that_take_no_noise_are_tried_with_plain_averages() -> None:
    tried = private(Job(softmax(lr=0.1), robust(), rounds=3), 20)
    assert tried.algorithm.name == "fedavg"
    assert tried.privacy is not None and tried.privacy.epsilon == 2
    own = Job(softmax(lr=0.1), fedavgm(0.1, 0.0)).private(
        epsilon=1.0, delta=1e-6, clip=1.0, unit="example", rate=0.1, population=1000
    )
    assert private(own, 20) is own
    job = Job(LEARNERS["softmax"], robust(), rounds=1, sites=False)
    assert {leak.protection for leak in leaks(job, sites(), (2,))} == {
        "none",
        "secure sum",
        "noise, epsilon 2",
    }
    *_, rows = leaks(own, sites(), (2,))
    assert rows.protection == "noise, epsilon 1"
    assert rows.psnr < rows.mean_image + 1
    with pytest.raises(ConfigError, match="takes more than"):
        next(leaks(job, sites(), (5000,)))


# -- members ------------------------------------------------------------------------------------


@cache
def noisy_labels() -> Any:
    """A few hundred rows whose labels are chance: who knows them has learnt them by heart."""
    rng = np.random.default_rng(0)
    made = [Examples(rng.normal(size=(n, 20)).astype("f4"), rng.integers(0, 4, n)) for n in (300, 900)]
    return partition(Dataset("chance", *made, classes=tuple("abcd")), clients=10, by=iid(), seed=1)


def test_members_are_told_without_noise_and_not_beyond_the_bound_with_it() -> None:
    learner = mlp((64,), lr=0.2, epochs=5, batch_size=10)
    job = Job(learner, fedavg("equal"), rounds=40, sites=False)
    bare, noisy = memberships(job, noisy_labels(), epsilon=0.5, seed=1)
    assert bare.advantage > 0.2 + 2 * bare.spread
    assert noisy.advantage < noisy.bound < bare.advantage, "the bound is one that the model alone breaks"
    assert noisy.bound == pytest.approx(np.tanh(0.25), abs=1e-3)


def test_the_threshold_is_where_most_members_and_fewest_others_are() -> None:
    assert threshold(np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.9])) == 0.2
    with pytest.raises(ConfigError, match="holdout"):
        others([Examples(np.ones((2, 2)), [0, 1])])


# -- the command --------------------------------------------------------------------------------


def test_the_command_prints_tables_and_draws(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "job.toml"
    path.write_text(
        'rounds = 2\n[data]\nname = "digits"\nclients = 10\nholdout = 0.5\n'
        '[learner]\nname = "softmax"\nlr = 0.1\n'
    )
    words = ["attack", "leak", str(path), "--clients", "1", "5", "--runs", "20", "--canaries", "50"]
    assert cli.main([*words, "--json", "--pictures", str(tmp_path / "drawn")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(row["protection"], row["clients"]) for row in said["inversion"]] == [
        ("none", 1),
        *(("secure sum", n) for n in (1, 5)),
        *(("noise, epsilon 2", n) for n in (1, 5)),
    ]
    assert [row["protection"] for row in said["membership"]] == ["none", "noise, epsilon 2"]
    assert said["audit"]["kept"] is said["one_run"]["kept"] is True
    assert said["one_run"]["canaries"] == 50
    assert len(said["pictures"]) == len(list((tmp_path / "drawn").iterdir())) == 5
    assert cli.main([*words, "--lang", "zh"]) == 0
    assert "安全求和" in capsys.readouterr().out
    assert cli.main([*words, "--clients", "99999"]) == 2


def test_pictures_are_what_they_say(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    made = png(grey)
    assert made.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", made[16:24]) == (4, 3)
    at = made.index(b"IDAT")
    (length,) = struct.unpack(">I", made[at - 4 : at])
    lines = np.frombuffer(zlib.decompress(made[at + 4 : at + 4 + length]), np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(lines[:, 1:], grey)
    leak = Leak("none", 1, 9.0, 9.0, 0.0, None, None, (np.eye(2, 4), np.ones((2, 4))))
    assert [p.name for p in write(tmp_path, [leak], (2, 2))] == ["none-1.png"]
    with pytest.raises(ConfigError, match="no square pictures"):
        write(tmp_path, [leak], (5,))
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        write(tmp_path / "file", [leak], (4,))
