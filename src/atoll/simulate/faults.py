"""What may go wrong in a simulated world, and how slow it is: values, drawn from one seed.

A delay is a part: `lognormal(0, 1)` in Python, `{name = "lognormal", mu = 0, sigma = 1}` in a
job file. A client's compute time is drawn once (its device is fast or slow) and jitters a little
from task to task; packets draw their delay each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import part

Draw: TypeAlias = Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class Delay:
    """Seconds, drawn from a distribution; `text` says which."""

    text: str
    draw: Draw = field(compare=False)

    def __str__(self) -> str:
        return self.text


@part("delay")
def constant(seconds: float) -> Delay:
    """Always the same number of seconds, at least 0."""
    if seconds < 0:
        raise ConfigError(f"a delay is at least 0 seconds, got {seconds}")
    return Delay(f"{seconds:g} s", lambda rng: seconds)


@part("delay")
def uniform(low: float, high: float) -> Delay:
    """Anything from `low` to `high` seconds."""
    if not 0 <= low <= high:
        raise ConfigError(f"uniform needs 0 <= low <= high, got {low} and {high}")
    return Delay(f"{low:g}-{high:g} s", lambda rng: float(rng.uniform(low, high)))


@part("delay")
def lognormal(mu: float = 0.0, sigma: float = 1.0) -> Delay:
    """exp(N(mu, sigma)) seconds: most are quick, a few very slow."""
    return Delay(f"lognormal({mu:g}, {sigma:g}) s", lambda rng: float(rng.lognormal(mu, sigma)))


@part("delay")
def exponential(seconds: float) -> Delay:
    """Exponential with this mean."""
    return Delay(f"exponential({seconds:g} s)", lambda rng: float(rng.exponential(seconds)))


@dataclass(frozen=True)
class Crash:
    """`peer` dies at `at` seconds and restarts from its last checkpoint `down` seconds later."""

    peer: str
    at: float
    down: float = 1.0


@dataclass(frozen=True)
class Partition:
    """From `start` to `stop` seconds no packet passes between `peers` and the others."""

    peers: frozenset[str]
    start: float
    stop: float


@dataclass(frozen=True)
class World:
    """How devices and networks behave; the default is instant and perfect.

    `compute`: seconds a device needs for one task; `jitter`: relative, each task's time is
    multiplied by U(1 - jitter, 1 + jitter). `delay`: seconds a packet travels. `bandwidth`:
    bytes per second and client, None for no limit. `loss`, `repeat`: the chance of a packet to
    vanish, to arrive twice. `dropout`: the chance that a client refuses a task. `resend`: seconds
    after which an unacknowledged packet goes out again.
    """

    compute: Delay = field(default_factory=lambda: constant(0.0))
    jitter: float = 0.0
    delay: Delay = field(default_factory=lambda: constant(0.0))
    bandwidth: float | None = None
    loss: float = 0.0
    repeat: float = 0.0
    dropout: float = 0.0
    crashes: tuple[Crash, ...] = ()
    partitions: tuple[Partition, ...] = ()
    resend: float = 1.0

    def __post_init__(self) -> None:
        for name in ("compute", "delay"):
            if not isinstance(getattr(self, name), Delay):
                raise ConfigError(
                    f"{name} is a delay, as in constant(0.1) or lognormal(), got {getattr(self, name)!r}"
                )
        for name in ("loss", "repeat", "dropout", "jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is a share: it must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if not self.resend > 0:
            raise ConfigError(f"resend must be above 0 seconds, got {self.resend}")


@part("world")
def world(
    compute: Delay | None = None,
    delay: Delay | None = None,
    jitter: float = 0.0,
    bandwidth: float | None = None,
    loss: float = 0.0,
    repeat: float = 0.0,
    dropout: float = 0.0,
    resend: float = 1.0,
) -> World:
    """A world of slow devices and bad networks; see World."""
    still = constant(0.0)
    return World(compute or still, jitter, delay or still, bandwidth, loss, repeat, dropout, resend=resend)
