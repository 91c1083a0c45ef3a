"""Who takes part in a round and from which stream each draws: the same for every side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atoll.core.rng import Rng

from .workloads import Workload

SEED = 7


def cohort(work: Workload, r: int) -> list[int]:
    """The clients of round r."""
    rng = Rng.of(SEED).at("cohort", r).generator()
    return sorted(rng.choice(work.clients, work.cohort, replace=False).tolist())


def streams(clients: list[int], r: int) -> list[Rng]:
    """Each client's own stream in round r."""
    here = Rng.of(SEED).at("round", r, "client")
    return [here.at(client) for client in clients]


def keys(clients: list[int], r: int) -> NDArray[np.uint64]:
    """The streams as numbers."""
    return np.array([stream.key for stream in streams(clients, r)], np.uint64)
