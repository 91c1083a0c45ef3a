"""A round's memory is the model's, whatever the number of clients: sums in place, once."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from atoll.core.aggregate import Reply
from atoll.core.edge import Answer, merge_answers
from atoll.core.rng import Rng
from atoll.core.update import Layout, Leaf, Update
from atoll.learn import rounds
from atoll.learn.algorithm import Algorithm, fedavg, fedavgm

SIZE = 8_000_000
LAYOUT = Layout((Leaf("table", (SIZE // 4000, 2000)), *(Leaf(f"layer{i}", (SIZE // 16,)) for i in range(8))))


def peak(clients: int, algorithm: Algorithm, copies: int = 0) -> float:
    """Bytes allocated at most, by the model's: its own, the sums, the next model; replies come from files."""
    reply = Update(LAYOUT, np.full(SIZE, 0.5, np.float32))
    tracemalloc.start()
    try:
        params = Update(LAYOUT, np.ones(SIZE, np.float32))
        plan = rounds.Plan(SimpleNamespace(), algorithm, {f"c{k}": [k] for k in range(clients)}, 1)
        now = rounds.Progress(0, params, algorithm.chain.start(params, "back"), {})
        cohort = tuple(range(clients))
        rule = algorithm.rule.at(rounds.update_points(plan, params, clients), cohort, Rng.of(1))
        answer = Answer(())
        for k in cohort:
            one = Answer((k,), replies=((k, Reply(reply, 3.0 + k, {"loss": 1.0})),))
            answer = merge_answers(rule, answer, one)
        kept = [answer.partial.sums.copy() for _ in range(copies)]
        now, _ = rounds.apply(plan, replace(now, params=params), rule, answer, Rng.of(2))
        del kept
        most = tracemalloc.get_traced_memory()[1] / params.buffer.nbytes
    finally:
        tracemalloc.stop()
    assert (now.params.buffer == 1.5).all()
    return most


@pytest.mark.parametrize("clients", [2, 10])
def test_a_round_takes_four_times_the_model(clients: int) -> None:
    """One for the model, two for the sums, one for the next model; a reply in its file would be a fifth."""
    assert peak(clients, fedavg()) < 4.1


def test_an_optimiser_with_state_takes_its_copies() -> None:
    """Control for ownership: momentum keeps what mean() gave it, so nothing is overwritten twice."""
    assert peak(2, fedavgm(momentum=0.5)) > 6


def test_control_a_copy_of_the_sums_is_seen() -> None:
    assert peak(2, fedavg(), copies=1) > 5.9
