"""Liars under masks and a promise of privacy: what they can send, what it does to a sum, what holds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.attack import Attack, attackers, attacks, poison, trials, ways
from atoll.attack.lying import Lying
from atoll.control import cli
from atoll.core.aggregate import Reply
from atoll.core.errors import CompositionError, ConfigError, ProtocolError
from atoll.core.registry import build
from atoll.core.rng import Rng
from atoll.core.transform import chain
from atoll.core.update import Update
from atoll.data import Dataset, Examples, iid, partition
from atoll.job import Job, Tree
from atoll.learn.algorithm import fedavg, fedavgm
from atoll.learn.buffered import fedbuff
from atoll.learn.compress import drawn, randomk
from atoll.learn.defend import recommended, robust
from atoll.learn.dense import softmax
from atoll.learn.encrypted import encrypted_sum
from atoll.learn.exchange import plain_sum
from atoll.learn.integers import Hidden, Scale
from atoll.learn.ring import signed
from atoll.learn.rules import median
from atoll.learn.secure import secure_sum
from atoll.learn.server import mean
from atoll.privacy import dp
from atoll.run import simulate
from atoll.simulate.faults import World
from tests.exact.quadratic import Bowl, Quadratic, Sites

CLIENTS, SEED = 26, 1
LIARS = attackers(CLIENTS, 0.2, SEED)


@cache
def sites() -> Any:
    """Four clouds of 16 numbers each."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, CLIENTS * 300)
    x = (rng.normal(0, 1, (4, 16))[y] + rng.normal(0, 1, (len(y), 16))).astype(np.float32)
    rows, test = Examples(x[2000:], y[2000:]), Examples(x[:2000], y[:2000])
    return partition(
        Dataset("clouds", rows, test, classes=tuple("abcd")), clients=CLIENTS, by=iid(), seed=SEED
    )


def job(rounds: int = 20, **more: Any) -> Job:
    made: dict[str, Any] = {"algorithm": fedavg("equal"), "every": rounds, "sites": False, **more}
    return Job(softmax(lr=0.5), rounds=rounds, **made)


def promised(rounds: int = 8, *, buckets: bool) -> Job:
    """Single rows hidden at ε = 8 by noise that clients add, with buckets of two and a rule, or without."""
    algorithm, exchange = fedavgm(lr=4.0, momentum=0.5), secure_sum(largest=1024.0)
    if buckets:
        rule = robust(recommended(len(LIARS)), buckets=CLIENTS // 2)
        algorithm, exchange = replace(rule, chain=algorithm.chain), replace(exchange, colluders=1)
    made = job(rounds, algorithm=algorithm, exchange=exchange)
    rows = sum(len(rows) for rows in sites())
    return made.private(epsilon=8.0, delta=1e-4, clip=0.5, unit="example", rate=1.0, population=rows)


@cache
def kept(attack: str, *, buckets: bool) -> float:
    """What a private job under secure sums keeps of the same promise without rule and liars."""
    (clean,) = trials({"sum": promised(buckets=False)}, sites(), [], LIARS, SEED)
    whole = trials(
        {"x": promised(buckets=buckets)}, sites(), [build("attack", attack)], LIARS, SEED, clean.accuracy
    )
    *_, last = whole
    assert (last.unit, last.attack) == ("example", attack)
    assert last.epsilon is not None and last.epsilon <= 8
    return last.kept


@pytest.mark.parametrize("attack", ["foe", "nan"])
def test_control_one_secure_sum_collapses(attack: str) -> None:
    assert kept(attack, buckets=False) < 0.5


@pytest.mark.parametrize("attack", ["foe", "nan", "sign_flip", "ipm", "label_flip"])
def test_a_rule_over_buckets_holds(attack: str) -> None:
    assert kept(attack, buckets=True) > 0.9


def test_under_masks_liars_neither_clip_nor_add_noise() -> None:
    """An honest client's integers keep to the clip and have noise; a liar's are anything in the ring."""
    like = Update.of({"w": np.full(4000, 3.0)})
    scale = Scale(32, 4.0, 2, 1.0, Hidden(sigma=2.0, bound=1.0, colluders=1))
    lying = Lying(secure_sum(), frozenset({7}), None)

    def noise(size: int, whole: float) -> Any:
        return np.rint(np.random.default_rng(0).normal(0, whole, size)).astype(np.int64)

    def said(client: int, numbers: float, weight: float = 1.0, under: Scale = scale) -> Any:
        reply = Reply(like.map(lambda x: np.full_like(x, numbers)), weight)
        made = lying._integers(client, reply, under, Rng.of(0), noise)
        return under.back(made, like.layout, 1).update.buffer

    honest = said(1, 0.9 / np.sqrt(4000))
    with pytest.raises(ProtocolError, match="longer than its clip"):
        said(1, 3.0)
    assert 1.9 < honest.std() < 2.1 and abs(honest.mean()) < 0.2, "the noise, and hardly an update"
    np.testing.assert_allclose(said(7, 3.0), 3.0, rtol=1e-6)
    edge = 2.0**30 / scale.unit
    assert edge > 10 * 4.0
    for beyond in (1e9, np.inf):
        assert (said(7, beyond) == edge).all()
        assert (said(7, -beyond) == -edge).all()
    assert (said(7, np.nan).reshape(-1, 2) == [edge, -edge]).all()
    assert abs(signed(lying._integers(7, Reply(like), scale, Rng.of(0), noise), 32)).max() < 2**31
    weighed = Scale(32, 4.0, 2, 10.0)
    np.testing.assert_allclose(said(7, 3.0, 5.0, weighed), 15.0, rtol=1e-6)


def test_a_liar_waits_for_its_buffer_like_anybody() -> None:
    """Sign-flippers in secure buffers do what they do in the open, and no model is left of larger lies."""
    buffers = job(12, algorithm=fedbuff(size=6, concurrency=12))
    hidden = buffers.replace(exchange=secure_sum(largest=1024.0))
    flip = [simulate(poison(j, LIARS, attacks.sign_flip()), sites(), SEED) for j in (buffers, hidden)]
    np.testing.assert_allclose(flip[1].params.buffer, flip[0].params.buffer, atol=1e-4)
    clean = simulate(hidden, sites(), SEED).metrics["accuracy"]
    assert simulate(poison(hidden, LIARS, attacks.foe()), sites(), SEED).metrics["accuracy"] < 0.5 * clean


def test_a_liar_speaks_for_its_bucket() -> None:
    """The rule sees the lie, whoever else is in the bucket; buckets without liars are as they were."""
    seen: list[Any] = []
    target = Attack("seven", send=lambda honest, own, rng: np.full_like(own, 7.0))
    rule = robust(lambda U: seen.append(U) or np.median(U, axis=0), buckets=CLIENTS // 2)  # type: ignore[arg-type, return-value]
    for exchange in (plain_sum(), secure_sum()):
        made = job(1, algorithm=rule, exchange=exchange)
        simulate(made, sites(), SEED)
        simulate(poison(made, LIARS, target), sites(), SEED)
        honest, told = seen[-2:]
        spoilt = np.isclose(told, 7.0, atol=1e-4).all(axis=1)
        assert 3 <= spoilt.sum() <= len(LIARS)
        np.testing.assert_allclose(told[~spoilt], honest[~spoilt], atol=1e-6)


def test_liars_know_what_clients_send_and_not_their_noise() -> None:
    seen: list[Any] = []

    def send(honest: Any, own: Any, rng: Any) -> Any:
        seen.append((honest, own))
        return own

    simulate(poison(promised(1, buckets=False), LIARS, Attack("x", send=send)), sites(), SEED)
    simulate(poison(promised(1, buckets=True), LIARS, Attack("x", send=send)), sites(), SEED)
    (honest, own), (clean, spoilt) = seen
    assert (len(honest), len(own)) == (CLIENTS - len(LIARS), len(LIARS))
    assert len(clean) + len(spoilt) == CLIENTS // 2
    rows = max(len(rows) for rows in sites())
    assert np.linalg.norm(honest, axis=1).max() <= rows * 0.5, "sums of clipped gradients, and no noise"


@pytest.mark.parametrize("exchange", [secure_sum(), plain_sum()])
def test_liars_that_tell_the_truth_change_nothing(exchange: Any) -> None:
    """The same bytes, over edges too: the harness itself adds nothing. A promise without liars as well."""
    truth = Attack("truth", send=lambda honest, own, rng: own)
    plain = job(2, exchange=exchange)
    want = simulate(plain, sites(), SEED).params
    assert simulate(poison(plain, LIARS, truth), sites(), SEED).params == want
    assert simulate(poison(plain.replace(topology=Tree((3,))), LIARS, truth), sites(), SEED).params == want
    assert simulate(poison(plain, LIARS, attacks.foe()), sites(), SEED).params != want
    private = plain.private(epsilon=8.0, delta=1e-4, clip=1.0)
    want = simulate(private, sites(), SEED).params
    assert simulate(poison(private, [], attacks.foe()), sites(), SEED).params == want


def test_behind_randomk_liars_under_masks_reach_the_drawn_places_alone() -> None:
    """No other numbers are summed, whatever they say there."""
    made = job(1, algorithm=chain(mean(), randomk(0.2)), exchange=secure_sum())
    want = simulate(made, sites(), SEED).params
    truth = Attack("truth", send=lambda honest, own, rng: own)
    assert simulate(poison(made, LIARS, truth), sites(), SEED).params == want
    loud = Attack("loud", send=lambda honest, own, rng: np.full_like(own, 3.0))
    found = simulate(poison(made, LIARS, loud), sites(), SEED).params.buffer
    here = drawn(found.size, 0.2, 0, 0).places(found.size)
    off = found - want.buffer
    assert (off[here] > 0.1).all()
    assert not np.delete(off, here).any()


def test_in_the_open_a_clip_bounds_liars() -> None:
    """The coordinator's gate knows how long an update may be; its noise is of its own making."""
    seen: list[float] = []
    bound = chain(mean(), dp.clip(0.5))
    rule = replace(robust(lambda U: seen.extend(np.linalg.norm(U, axis=1)) or U.mean(axis=0)), chain=bound)  # type: ignore[arg-type, return-value, func-returns-value]
    simulate(poison(job(1, algorithm=rule), LIARS, attacks.foe(1e6)), sites(), SEED)
    assert max(seen) <= 0.5
    central = job(10).private(epsilon=8.0, delta=1e-4, clip=1.0)
    run = simulate(poison(central, LIARS, attacks.nan()), sites(), SEED)
    assert set(run.history[1]["failed"]) == set(LIARS)
    assert run.history[1]["clients"] == CLIENTS - len(LIARS)


def test_encrypted_sums_can_be_poisoned_and_take_no_buckets() -> None:
    pytest.importorskip("tenseal")
    made = job(5, exchange=encrypted_sum(members=CLIENTS))
    want = simulate(made, sites(), SEED).metrics["accuracy"]
    found = simulate(poison(made, LIARS, attacks.foe()), sites(), SEED).metrics["accuracy"]
    assert found < 0.5 < want
    with pytest.raises(CompositionError, match="buckets go with secure_sum"):
        job(1, algorithm=robust(median(), buckets=5), exchange=encrypted_sum())


def test_alone_a_liar_takes_its_own_update_for_everybodys() -> None:
    """In a world clients are asked one by one."""
    told: list[Any] = []

    def send(honest: Any, own: Any, rng: Any) -> Any:
        told.append((honest, own))
        return -honest

    simulate(
        poison(job(1, exchange=secure_sum()), LIARS, Attack("x", send=send)), sites(), SEED, world=World()
    )
    assert len(told) == len(LIARS)
    assert all((honest == own).all() and len(own) == 1 for honest, own in told)


def test_an_honest_client_that_is_refused_changes_no_lie() -> None:
    """Its numbers do not fit the ring; everybody else, liars too, goes on."""
    seen: list[int] = []

    def send(honest: Any, own: Any, rng: Any) -> Any:
        seen.append(len(honest))
        return own

    data = Sites([Bowl([1.0, 1.0, 1.0], [1e6 if k == 9 else k, 0.0, 0.0], rows=3) for k in range(10)])
    made = Job(Quadratic(size=3), rounds=2, sites=False, exchange=secure_sum())
    run = simulate(poison(made, [0], Attack("x", send=send)), data)
    assert seen == [9, 9], "asked once a round"
    assert [list(r["failed"]) for r in run.history[1:]] == [[9], [9]]


def test_ways_take_a_hidden_jobs_protections_one_by_one() -> None:
    plain = list(ways(job(1), 0.2))
    assert plain[0] == "mean" and len(plain) == 2
    hidden = ways(job(1, exchange=secure_sum()), 0.2, 40)
    assert list(hidden) == ["mean", "secure sum", f"{recommended(8)}, 20 buckets"]
    central = ways(job(1).private(epsilon=8.0, delta=1e-4, clip=1.0), 0.2, 20)
    assert list(central) == ["mean", "noise", "median(), 10 buckets"]
    safe = central["median(), 10 buckets"]
    assert (safe.privacy.noise, safe.exchange.colluders) == ("distributed", 1)  # type: ignore[union-attr]
    assert safe.epsilon().epsilon <= 8
    both = ways(promised(buckets=True), 0.2)
    assert list(both)[:3] == ["mean", "secure sum", "noise"]
    assert both["mean"].privacy is None and both["secure sum"].exchange.shows == "sum"
    with pytest.raises(ConfigError, match="give clients"):
        ways(job(1, exchange=secure_sum()), 0.2)


def test_the_command_prints_the_promise(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "job.toml"
    path.write_text(
        'rounds = 3\nsites = false\n[data]\nname = "digits"\nclients = 10\n[learner]\nname = "softmax"\n'
        'lr = 0.1\n[exchange]\nname = "secure_sum"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\nclip = 1.0\n'
    )
    words = ["attack", "poison", str(path), "--only", "foe"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["trials"]
    assert [t["rule"] for t in found[:4]] == ["mean", "secure sum", "noise", "median(), 5 buckets"]
    assert [t["unit"] for t in found[:4]] == [None, None, "client", "client"]
    assert all(t["epsilon"] is None or 7.5 < t["epsilon"] <= 8 for t in found)
    assert cli.main(words) == 0
    assert "8 (client)" in capsys.readouterr().out
