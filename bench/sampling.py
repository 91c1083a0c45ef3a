"""Who takes part in a round and from which stream each draws: what `simulate` itself does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atoll.core.rng import Rng
from atoll.core.update import Update

from .workloads import Workload

SEED = 7
COORDINATOR = Rng.of(SEED).at("coordinator")


def start(work: Workload) -> Update:
    """The first model."""
    return Update.of(work.learner.init(COORDINATOR.at("init").generator()))


def cohort(work: Workload, r: int) -> list[int]:
    """The clients of round r."""
    rng = COORDINATOR.at("round", r).at("cohort").generator()
    return sorted(rng.choice(work.clients, work.cohort, replace=False).tolist())


def keys(clients: list[int], r: int) -> NDArray[np.uint64]:
    """The streams from which the clients draw their orders."""
    here = Rng.of(SEED).at("clients", r)
    return np.array([here.at(client).key for client in clients], np.uint64)
