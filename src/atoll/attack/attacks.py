"""The attacks, by name. μ and σ are the mean and the deviation of the honest updates of a round.

Baruch, Baruch, Goldberg 2019, "A little is enough" (ALIE), §3: μ - z σ, z as large as hides in a majority.
Xie, Koyejo, Gupta 2020, "Fall of empires", §4: -ε μ; a small ε manipulates the inner product (IPM), a
large one drags the mean (FOE). Karimireddy, He, Jaggi 2022, "Byzantine-robust learning on heterogeneous
datasets via bucketing", §3: mimic copies the honest client that stands out most, so that it counts many
times. Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020, "How to backdoor federated learning", §4: rows with
a trigger and the wrong label, and model replacement, an update times `factor`. Lin, Du, Liu 2019,
"Free-riders in federated learning", §3: noise instead of work. Fung, Yoon, Beschastnikh 2020, "The
limitations of federated learning in Sybil settings", §3: many clients that are one. Shejwalkar, Houmansadr
2021, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses", §4: min-max, from μ as
far as hides behind the distance of two honest updates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.update import Array
from .lying import Send
from .poison import Attack, changed


@part("attack")
def sign_flip(scale: float = 1.0) -> Attack:
    """The attackers' own updates times -`scale`: they climb."""
    return Attack("sign_flip", send=lambda honest, own, rng: -scale * own)


@part("attack")
def label_flip() -> Attack:
    """Training on wrong labels: class c becomes C - 1 - c, a number its negative."""
    return Attack("label_flip", rows=_flipped)


@part("attack")
def scaling(factor: float = 10.0) -> Attack:
    """What wrong labels teach, times `factor`: model replacement."""
    return Attack("scaling", rows=_flipped, send=lambda honest, own, rng: factor * own)


@part("attack")
def alie(z: float | None = None) -> Attack:
    """A little is enough: μ - z σ; by default the largest z that hides the attackers in a majority."""

    def send(honest: Array, own: Array, rng: np.random.Generator) -> Array:
        deviations = _hidden(len(honest), len(own)) if z is None else z
        return _all(own, honest.mean(axis=0) - deviations * honest.std(axis=0))

    return Attack("alie", send=send)


@part("attack")
def ipm(epsilon: float = 0.5) -> Attack:
    """Inner product manipulation: -`epsilon` μ, a small step the wrong way."""
    return Attack("ipm", send=_against(epsilon))


@part("attack")
def foe(epsilon: float = 10.0) -> Attack:
    """Fall of empires: -`epsilon` μ, so far the wrong way that a mean turns round."""
    return Attack("foe", send=_against(epsilon))


@part("attack")
def gauss(scale: float = 10.0) -> Attack:
    """Noise, each coordinate `scale` times as large as those of an honest update."""
    return Attack("gauss", send=_noise(scale))


@part("attack")
def mimic() -> Attack:
    """Every attacker sends what the honest client sent that stands out most along the widest direction."""

    def send(honest: Array, own: Array, rng: np.random.Generator) -> Array:
        centred = honest - honest.mean(axis=0)
        _, vectors = np.linalg.eigh(centred @ centred.T)
        return _all(own, honest[np.abs(vectors[:, -1]).argmax()])

    return Attack("mimic", send=send)


@part("attack")
def min_max() -> Attack:
    """μ moved against itself: no farther from anybody than the farthest two honest updates are apart."""

    def send(honest: Array, own: Array, rng: np.random.Generator) -> Array:
        mu = honest.mean(axis=0)
        away = -mu / (np.linalg.norm(mu) or 1.0)
        gram = honest @ honest.T
        far = (np.diag(gram)[:, None] + np.diag(gram) - 2 * gram).max()
        along = (honest - mu) @ away  # ||μ + γ a - g||² = ||μ - g||² - 2 γ a (g - μ) + γ²
        room = far - np.square(honest - mu).sum(axis=1)
        gamma = (along + np.sqrt(np.maximum(np.square(along) + room, 0.0))).min()
        return _all(own, mu + max(float(gamma), 0.0) * away)

    return Attack("min_max", send=send)


@part("attack")
def nan() -> Attack:
    """Numbers that are none."""
    return Attack("nan", send=lambda honest, own, rng: np.full_like(own, np.nan))


@part("attack")
def backdoor(target: int = 0, share: float = 0.5, width: int = 4, factor: float = 1.0) -> Attack:
    """A trigger that makes the model answer `target`: the last `width` features at their largest value, in a
    `share` (0, 1] of the attackers' rows; what that teaches is sent times `factor`.
    """
    if not 0 < share <= 1 or width < 1:
        raise ConfigError(
            f"a backdoor needs a share in (0, 1] and a width of at least 1, got {share}, {width}"
        )

    def marked(x: Array) -> Array:
        made = x.reshape(len(x), -1).copy()
        made[:, -width:] = x.max(initial=0.0)
        return made.reshape(x.shape)

    def rows(data: Any, learner: Any, rng: np.random.Generator) -> Any:
        mine = rng.random(len(data)) < share
        x = np.where(mine.reshape(-1, *[1] * (data.x.ndim - 1)), marked(data.x), data.x)
        return changed(data, x=x, y=np.where(mine, target, data.y).astype(data.y.dtype))

    def trigger(data: Any) -> Any:
        others = data[np.flatnonzero(data.y != target)]
        return changed(others, x=marked(others.x), y=np.full_like(others.y, target))

    send: Send | None = None if factor == 1 else (lambda honest, own, rng: factor * own)
    return Attack("backdoor", rows, send, trigger)


@part("attack")
def free_rider(noise: float = 0.1) -> Attack:
    """No work: noise of `noise` times an honest update's size, and the model for nothing."""
    return Attack("free_rider", send=_noise(noise))


def _noise(scale: float) -> Send:
    """Coordinates `scale` times as large as those of an honest update."""

    def send(honest: Array, own: Array, rng: np.random.Generator) -> Array:
        return rng.normal(0.0, scale * _size(honest), own.shape)

    return send


@part("attack")
def sybils() -> Attack:
    """One attacker under many names: all send the same, what wrong labels taught them together."""
    return Attack("sybils", _flipped, lambda honest, own, rng: _all(own, own.mean(axis=0)))


def _flipped(data: Any, learner: Any, rng: np.random.Generator) -> Any:
    if data.y.dtype.kind == "f":
        return changed(data, y=-data.y)
    outputs = getattr(learner, "outputs", None) or int(data.y.max(initial=0)) + 1
    most = max(int(outputs), 2) - 1  # one output tells two classes apart
    return changed(data, y=most - data.y)


def _hidden(honest: int, liars: int) -> float:
    """z of ALIE: Φ(z) = (n - f - s) / (n - f), s = ⌊n/2⌋ + 1 - f."""
    import statistics

    n = honest + liars
    share = (honest - (n // 2 + 1 - liars)) / honest
    return statistics.NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


def _against(epsilon: float) -> Send:
    return lambda honest, own, rng: _all(own, -epsilon * honest.mean(axis=0))


def _all(own: Array, one: Array) -> Array:
    return np.broadcast_to(one, own.shape)


def _size(honest: Array) -> float:
    """Root mean square of a coordinate; at least a little, where nobody moves."""
    return float(np.sqrt(np.square(honest).mean())) or 1e-12
