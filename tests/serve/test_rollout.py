"""The roll-out of a model as a machine: its laws, and what its gates find and leave alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import ProtocolError
from atoll.privacy.orders import OPEN, Gates, Order
from atoll.serve import rollout
from atoll.serve.evidence import FEW, Bet, Evidence, Pair, over, quantile, stopped
from atoll.serve.rollout import Line, Move

FAST = (0.001, 0.001)
ALL = Order(1)


def pair(a: int, b: int, *, given: bool = True, took: tuple[float, float] = FAST) -> Pair:
    return Pair([a], [b], True, took, given)


def begun(order: Order, version: int = 2) -> Line:
    line, _ = rollout.accepted(Line(), 1, None, 0, 0.0)
    line, move = rollout.accepted(line, version, order, 0, 0.0)
    assert move is not None and move.stage in (order.stage, "served")
    return line


def fed(line: Line, pairs: Iterator[Pair] | list[Pair], now: float = 1.0) -> tuple[Line, list[Move]]:
    moves = []
    for found in pairs:
        if line.candidate is None:
            break
        line, move = rollout.compared(line, line.candidate.version, found, now)
        moves += [move] if move else []
    return line, moves


# -- laws -----------------------------------------------------------------------------------------

GATES = st.sampled_from([OPEN, Gates(least=3), Gates(0.1, 0.1, 2.0, 0.2, least=2)])
ORDERS = st.builds(
    Order,
    number=st.integers(1, 12),
    stage=st.sampled_from(["shadow", "canary", "all", "held"]),
    until=st.sampled_from(["shadow", "canary", "all"]),
    shadow=st.integers(0, 4),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    gates=GATES,
    stay=st.sampled_from([0.0, 3.0]),
    again=st.booleans(),
)
VERSIONS = st.integers(1, 6)
HAPPENS = st.one_of(
    st.tuples(st.just("accepted"), VERSIONS, st.none() | ORDERS, st.sampled_from([0, 0, 0, 3, 6])),
    st.tuples(st.just("compared"), VERSIONS, st.integers(1, 40), st.booleans()),
    st.tuples(st.just("labelled"), VERSIONS, st.sampled_from([-1.0, 0.0, 1.0]), st.just(1)),
    st.tuples(st.just("broke"), VERSIONS, st.just("it broke"), st.none()),
    st.tuples(st.just("started"), st.none(), st.none(), st.none()),
    st.tuples(st.just("ended"), st.none(), st.none(), st.none()),
)


def step(line: Line, what: tuple[Any, ...], now: float) -> tuple[Line, list[Move]]:
    kind, a, b, c = what
    if kind == "accepted":
        line, move = rollout.accepted(line, a, b, c, now)
    elif kind == "compared":
        return fed(line, [pair(1, int(c))] * b, now)
    elif kind == "labelled":
        line, move = rollout.labelled(line, a, b, c, now)
    elif kind == "broke":
        line, move = rollout.broke(line, a, b)
    elif kind == "started":
        line, move = rollout.started(line, now)
    else:
        line, move = rollout.ended(line), None
    return line, [move] if move else []


@given(st.lists(HAPPENS, max_size=40))
def test_laws(life: list[tuple[Any, ...]]) -> None:
    """One champion always; versions and orders only rise, but by a signed order; who is tried is no
    champion; every request has somebody to answer it; a record on disk says the same as the one in memory.
    """
    line = Line()
    for now, what in enumerate(life):
        before = line
        try:
            line, moves = step(line, what, float(now))
        except ProtocolError:
            continue  # refused: it stays as it was
        assert line.number >= before.number and line.newest >= before.newest >= before.champion
        assert (line.champion > 0) or before.champion == 0
        if line.champion != before.champion:
            assert moves[-1] == (line.champion, "served", moves[-1].reason)
            ordered = what[0] == "accepted" and (what[3] >= before.newest or (what[2] and what[2].again))
            assert line.champion > before.champion or ordered
        if what[0] == "accepted" and what[2] is not None and moves:
            assert what[2].number > before.number
        trial = line.candidate
        assert trial is None or trial.version not in (line.champion, *line.back)
        assert line.champion not in line.back
        for ticket in ("a", "b", "c"):
            assert line.champion or not rollout.gives(line, "m", ticket)
            assert rollout.gives(line, "m", ticket) == rollout.gives(line, "m", ticket)
        if trial is not None and trial.stage == "shadow":
            assert not any(rollout.gives(line, "m", str(i)) for i in range(20))
        assert msgspec.json.decode(msgspec.json.encode(line), type=Line) == line
        assert {m.stage for m in moves} <= {"shadow", "canary", "all", "served", "back"}


def test_an_older_order_and_a_held_version_are_refused_with_the_reason() -> None:
    line = begun(Order(5, "shadow", gates=Gates()))
    for number in (1, 4, 5):
        with pytest.raises(ProtocolError, match=f"order {number} came, and 5 was obeyed"):
            rollout.accepted(line, 3, Order(number), 0, 0.0)
    with pytest.raises(ProtocolError, match="registered and not rolled out"):
        rollout.accepted(line, 3, Order(6, "held"), 0, 0.0)
    with pytest.raises(ProtocolError, match="version 1 came, and 2 was here"):
        rollout.accepted(begun(Order(5)), 1, Order(6), 0, 0.0)


def test_what_was_taken_back_stays_back_until_it_is_ordered_again() -> None:
    line, move = rollout.broke(begun(Order(1, "canary", gates=Gates())), 2, "it broke")
    assert move == (2, "back", "it broke") and line.champion == 1
    line, move = rollout.accepted(line, 2, Order(2), 0, 0.0)  # everybody else has taken it
    assert move == (2, "back", "it broke") and line.champion == 1
    line, move = rollout.accepted(line, 2, Order(3, again=True), 0, 0.0)
    assert move == (2, "served", "") and line.champion == 2 and line.back == {}
    line, move = rollout.accepted(line, 1, Order(4, reason="it drifts"), 2, 0.0)
    assert move == (1, "served", "it drifts") and line.back == {2: "it drifts"}
    with pytest.raises(ProtocolError, match="it only rises"):
        rollout.accepted(line, 2, None, 0, 0.0)


def test_a_good_candidate_goes_all_the_way() -> None:
    line = begun(Order(1, "shadow", shadow=40, share=0.25, gates=Gates(least=50)))
    stages = []
    for n in range(140):
        line, move = rollout.compared(line, 2, pair(n % 3, n % 3, given=line.candidate.stage != "shadow"), n)  # type: ignore[union-attr]
        stages += [(n + 1, move.stage)] if move else []
    assert stages == [(40, "canary"), (90, "all"), (140, "served")]
    assert (line.champion, line.candidate) == (2, None)


def test_it_waits_where_the_order_says_so() -> None:
    order = Order(1, "canary", "canary", gates=Gates(least=FEW, labels=5), stay=60.0)
    line, moves = fed(begun(order), [pair(1, 1)] * 200, now=100.0)
    assert moves == [] and line.candidate is not None
    line, _ = rollout.labelled(line, 2, 0.0, 5, 101.0)
    assert line.candidate is not None and line.candidate.stage == "canary"
    line, _ = rollout.accepted(line, 2, Order(2, "canary", gates=Gates(least=FEW), stay=60.0), 0, 102.0)
    line, moves = fed(line, [pair(1, 1)] * 200, now=161.0)
    assert moves == []
    line, moves = fed(line, [pair(1, 1)], now=162.0)
    assert [m.stage for m in moves] == ["all"]


def test_a_share_of_tickets_is_a_canarys_the_same_ones_always() -> None:
    line = begun(Order(1, "canary", share=0.1, gates=Gates()))
    mine = [t for t in map(str, range(20_000)) if rollout.gives(line, "m", t)]
    assert abs(len(mine) - 2000) < 5 * 42.5  # five deviations of a binomial
    assert all(rollout.gives(line, "m", t) for t in mine)
    other = begun(Order(1, "canary", share=0.1, gates=Gates()), version=3)
    assert sum(rollout.gives(other, "m", t) for t in mine) < 400  # other tickets try another version


def test_whoever_ends_the_process_is_taken_back_and_an_orderly_end_speaks_against_nobody() -> None:
    line = begun(Order(1, "canary", gates=Gates()))
    for _ in range(rollout.STARTS):
        line, move = rollout.started(line, 0.0)
        assert move is not None and move.stage == "canary"
    gone, move = rollout.started(line, 0.0)
    assert move == (2, "back", "the process ended 3 times while it was tried")
    assert gone.candidate is None and gone.champion == 1
    for _ in range(10):
        line, move = rollout.started(rollout.ended(line), 0.0)
        assert move is not None and move.stage == "canary"
    line, _ = fed(line, [pair(1, 1)] * 20)
    assert line.candidate is not None and line.candidate.starts == 0


def test_a_start_never_lets_a_candidate_answer_more_than_its_share() -> None:
    line, moves = fed(begun(Order(1, "canary", share=0.5, gates=Gates(least=40))), [pair(1, 1)] * 40)
    assert [m.stage for m in moves] == ["all"]
    line, move = rollout.started(line, 9.0)
    assert move == (2, "canary", "") and line.champion == 1


# -- gates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0.02, 0.3, 0.5])
def test_a_bet_at_its_limit_is_rarely_won_however_often_one_looks(m: float) -> None:
    """400 streams of 1,000 at the limit, looked at after each: at most alpha of them stop. And a control."""
    alpha = 0.05
    draws = np.random.default_rng(1).random((400, 1000))

    def won(rate: float) -> float:
        stops = 0
        for row in draws < rate:
            bet = Bet()
            for x in row.tolist():
                bet = bet.bet(float(x), m)
                if bet.wealth >= np.log(1 / alpha):
                    stops += 1
                    break
        return stops / len(draws)

    assert won(m) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 400)
    assert won(min(1.0, 2 * m + 0.1)) > 0.95


def test_five_requests_stop_nobody_however_bad() -> None:
    awful = [pair(0, 1, took=(0.001, 1.0))] * (FEW - 1)
    line, moves = fed(begun(Order(1, "canary", gates=Gates())), awful)
    assert moves == [] and line.candidate is not None
    line, moves = fed(line, awful[:1])
    assert moves[0].stage == "back" and "of answers differ" in moves[0].reason


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda i: pair(i % 4, (i + 1) % 4), "100.0% of answers differ where 30.0% may"),
        (lambda i: pair(i % 4, i % 4, took=(0.001, 0.004)), "more than 2 times as long at the median"),
        (lambda i: pair(i % 4, i % 4, took=(0.001, 0.02 if i % 9 == 0 else 0.001)), "at the 99th percentile"),
        (lambda i: Pair([float(i % 7)], [9.0 + i % 7], False, FAST, True), "answers differ|drift by a PSI"),
    ],
)
def test_a_bad_candidate_is_taken_back_with_the_reason(bad: Any, says: str) -> None:
    line, moves = fed(begun(Order(1, "canary", gates=Gates())), map(bad, range(1000)))
    assert moves[0].stage == "back" and re.search(says, moves[0].reason), moves
    assert line.champion == 1 and line.back == {2: moves[0].reason}
    line, moves = fed(begun(Order(1, "canary", gates=OPEN)), map(bad, range(1000)))  # control: nobody looks
    assert line.champion == 2


def test_drift_alone_is_found() -> None:
    gates = Gates(None, None, None, 0.25)
    dice = np.random.default_rng(3)
    line = begun(Order(1, "canary", gates=gates))
    line, moves = fed(line, (pair(int(k % 4), int(k % 4) // 2) for k in dice.integers(0, 99, 2000)))
    assert moves[0].stage == "back" and "drift by a PSI" in moves[0].reason
    same = (Pair([float(x)], [float(x) + 0.01], False, FAST, True) for x in dice.normal(size=300))
    line, moves = fed(begun(Order(1, "canary", gates=gates)), same)
    assert [m.stage for m in moves] == ["all", "served"]


def test_error_counts_where_labels_come() -> None:
    """Wrong one time in five more than the champion: found; as often wrong elsewhere: served."""

    def life(extra: float, seed: int) -> tuple[Line, int]:
        dice, n = np.random.default_rng(seed), 0
        line = begun(Order(1, "canary", gates=Gates(0.02, None, None, None, least=200, labels=200)))
        while line.candidate is not None and n < 5000:
            n += 1
            line, _ = rollout.compared(line, 2, pair(1, 1), 0.0)
            worse = float(dice.random() < 0.1 + extra) - float(dice.random() < 0.1)
            line, _ = rollout.labelled(line, 2, worse, 1, 0.0)
        return line, n

    found = [life(0.2, seed) for seed in range(20)]
    assert all(line.champion == 1 for line, _ in found)
    assert np.median([n for _, n in found]) <= 300
    assert sum(life(0.0, seed)[0].champion == 2 for seed in range(20)) >= 19


def test_who_is_neither_proved_good_nor_bad_is_taken_back_in_the_end() -> None:
    order = Order(1, "canary", gates=Gates(None, 0.3, None, None, least=40))
    _, moves = fed(begun(order), (pair(0, int(i % 3 == 0)) for i in range(500)))
    assert moves[0].stage == "back" and "still after 400 requests" in moves[0].reason


def test_worst_of_equals_are_rarely_stopped() -> None:
    """Two good models that differ on a tenth of rows: 60 roll-outs, all of them come through."""
    through = 0
    for seed in range(60):
        dice = np.random.default_rng(seed)
        rows = (
            pair(
                int(k),
                int(k) if dice.random() > 0.1 else int(dice.integers(4)),
                took=tuple(dice.gamma(9, 1e-4, 2)),
            )  # type: ignore[arg-type]
            for k in dice.integers(0, 4, 600)
        )
        line, _ = fed(begun(Order(1, "canary", gates=Gates())), rows)
        through += line.champion == 2
    assert through >= 59


def test_figures_hold_counts_and_rates_alone() -> None:
    seen = Evidence()
    for i in range(64):
        seen = seen.compared(
            Pair([float(i)], [float(i) + 100.0], False, (0.001, 0.002), given=False), Gates()
        )
    seen = seen.judged(1.0, 1, Gates())
    found = seen.figures()
    assert found["compared"] == 64 and found["labels"] == 1 and found["error"] == 1.0
    assert 1.8 < found["p50"] < 2.2
    assert found.keys() == {
        *("compared", "given", "dropped", "disagreement", "p50", "p99", "psi", "labels", "error"),
    }
    assert stopped(seen, OPEN) == over(seen, OPEN) == ""
    assert Evidence(answers=({1: 50, 2: 50}, {1: 50, 2: 50})).psi == Evidence().psi == 0.0
    assert Evidence(answers=({1: 50, 2: 50}, {3: 50, 2: 50})).psi == pytest.approx(
        2 * (0.5 - 0.5 / 100.5) * math.log(50 / 0.5), rel=0.02
    )
    assert quantile({}, 0.5) > 0
