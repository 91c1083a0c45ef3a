"""Poisoned jobs: what each attack sends, that it works where nothing defends, and what a rule withstands."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.attack import Attack, attackers, attacks, poison, trials, ways
from atoll.control import cli
from atoll.core.errors import ConfigError, QuorumError
from atoll.core.registry import build, parts
from atoll.core.rng import Rng
from atoll.core.transform import chain
from atoll.data import Examples, iid, load_data, partition
from atoll.job import Job, Tree
from atoll.learn.algorithm import fedavg
from atoll.learn.compress import topk
from atoll.learn.defend import momentum, robust
from atoll.learn.dense import mlp, softmax
from atoll.learn.ring import ring
from atoll.learn.robust import Gather
from atoll.learn.rules import average, fltrust, median, trimmed_mean
from atoll.learn.server import mean
from atoll.run import simulate

CLIENTS, SHARE, SEED = 20, 0.2, 1
LIARS = attackers(CLIENTS, SHARE, SEED)
NAMES = [p.name for p in parts("attack")]
REAL = {"foe", "scaling"}  # at a fifth of the clients these alone end a plain mean


@cache
def sites() -> Any:
    pytest.importorskip("sklearn")
    return partition(load_data("digits"), clients=CLIENTS, by=iid(), seed=SEED)


def job(rounds: int = 40, **more: Any) -> Job:
    return Job(
        mlp((30,), lr=0.2, batch_size=10), fedavg("equal"), rounds=rounds, every=rounds, sites=False, **more
    )


@cache
def outcome(name: str) -> dict[str, Any]:
    """What the attack leaves, by way to aggregate."""
    found = trials(ways(job(), SHARE), sites(), [build("attack", name)], LIARS, SEED)
    return {("clean " if t.attack == "none" else "") + t.rule.partition("(")[0]: t for t in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_robust_rule_keeps_the_accuracy(name: str) -> None:
    found = outcome(name)
    assert found["mean"].attack == found["level"].attack == name
    assert found["clean mean"].accuracy > 0.9
    assert found["level"].kept > 0.93


@pytest.mark.parametrize("name", sorted(REAL))
def test_control_the_plain_mean_collapses(name: str) -> None:
    assert outcome(name)["mean"].kept < 0.4


def test_control_a_backdoor_opens_under_the_mean_and_not_under_the_rule() -> None:
    found = outcome("backdoor")
    assert found["mean"].kept > 0.95  # nothing shows
    assert found["mean"].success > 0.4
    assert found["level"].success <= 0.05


@pytest.mark.parametrize("name", ["foe", "sign_flip", "scaling"])
def test_trusted_rows_withstand_a_majority(name: str) -> None:
    """Twelve of twenty lie; the client with the coordinator's own rows is one of the others."""
    attack, liars = build("attack", name), range(1, 13)
    safe = job().replace(algorithm=robust(fltrust(0)))
    assert simulate(poison(safe, liars, attack), sites(), SEED).metrics["accuracy"] > 0.85


@pytest.mark.parametrize("name", sorted(REAL))
def test_buckets_withstand_a_tenth(name: str) -> None:
    """Two liars in two of ten buckets, of which no rule sees a single update."""
    safe = job().replace(algorithm=robust(trimmed_mean(2), buckets=10))
    run = simulate(poison(safe, LIARS[:2], build("attack", name)), sites(), SEED)
    assert run.metrics["accuracy"] > 0.93 * outcome(name)["clean mean"].accuracy


@pytest.mark.parametrize("rule", [fedavg("equal"), Gather(median()), robust(momentum=0.5, buckets=11)])
def test_liars_that_tell_the_truth_change_nothing(rule: Any) -> None:
    """The same bytes, flat and over edges: the harness itself adds nothing."""
    honest = Attack("none", send=lambda honest, own, rng: own)
    plain = job(3).replace(algorithm=rule)
    want = simulate(plain, sites(), SEED).params
    assert simulate(poison(plain, LIARS, honest), sites(), SEED).params == want
    assert simulate(poison(plain.replace(topology=Tree((3,))), LIARS, honest), sites(), SEED).params == want
    assert simulate(poison(plain, [], build("attack", "foe")), sites(), SEED).params == want
    assert simulate(poison(plain, LIARS, build("attack", "foe")), sites(), SEED).params != want


def test_attackers_see_what_honest_clients_send_and_say_the_last_word() -> None:
    """Behind momentum and compression, which they need not follow."""
    seen: list[Any] = []

    def send(honest: Any, own: Any, rng: Any) -> Any:
        seen.append((honest, own))
        return np.full_like(own, 7.0)

    got: list[Any] = []
    rule = Gather(lambda U: got.append(U) or U.mean(axis=0))
    algorithm = build("algorithm", "fedavg")
    algorithm = type(algorithm)("x", chain(mean(), momentum(0.5), topk(0.1)), rule=rule)
    simulate(poison(job(2).replace(algorithm=algorithm), LIARS, Attack("x", send=send)), sites(), SEED)
    honest, own = seen[0]
    assert (len(honest), len(own)) == (CLIENTS - len(LIARS), len(LIARS))
    assert (np.count_nonzero(honest, axis=1) <= honest.shape[1] * 0.1 + 1).all()
    told = np.isin(np.arange(CLIENTS), LIARS)
    assert (got[0][told] == 7).all()
    np.testing.assert_array_equal(got[0][~told], honest)


def test_what_each_attack_sends() -> None:
    rng = np.random.default_rng(0)
    honest, own, draw = rng.normal(1, 2, (16, 50)), rng.normal(1, 2, (4, 50)), Rng.of(3).generator
    mu, sigma = honest.mean(axis=0), honest.std(axis=0)

    def sent(name: str, **values: Any) -> Any:
        made = build("attack", {"name": name, **values}).send(honest, own, draw())
        assert made.shape == own.shape
        return made

    np.testing.assert_allclose(sent("sign_flip", scale=2), -2 * own)
    np.testing.assert_allclose(sent("scaling", factor=5), 5 * own)
    np.testing.assert_allclose(sent("ipm"), np.tile(-0.5 * mu, (4, 1)))
    np.testing.assert_allclose(sent("foe"), np.tile(-10 * mu, (4, 1)))
    np.testing.assert_allclose(sent("sybils"), np.tile(own.mean(axis=0), (4, 1)))
    np.testing.assert_allclose(sent("alie", z=1.5), np.tile(mu - 1.5 * sigma, (4, 1)))
    # n = 20, f = 4: s = 7, Φ(z) = 9/16
    np.testing.assert_allclose(sent("alie"), np.tile(mu - 0.157311 * sigma, (4, 1)), rtol=1e-4)
    assert np.isnan(sent("nan")).all()
    assert any((sent("mimic") == row).all() for row in honest)
    assert 8 < sent("gauss").std() / np.sqrt(np.square(honest).mean()) < 12
    assert 0.08 < sent("free_rider").std() / np.sqrt(np.square(honest).mean()) < 0.12


def test_mimic_copies_who_stands_out() -> None:
    honest = np.random.default_rng(1).normal(size=(9, 20)) * 0.1
    honest[5] += 3
    made = build("attack", "mimic").send(honest, honest[:2], None)
    np.testing.assert_array_equal(made, honest[[5, 5]])


def test_min_max_goes_as_far_as_hides() -> None:
    for seed in range(5):
        honest = np.random.default_rng(seed).normal(0.3, 1, (8, 12))
        (made,) = build("attack", "min_max").send(honest, honest[:1], None)
        far = max(np.linalg.norm(a - b) for a in honest for b in honest)
        assert np.linalg.norm(honest - made, axis=1).max() == pytest.approx(far)
        assert (made - honest.mean(axis=0)) @ honest.mean(axis=0) < 0


def test_what_attackers_train_on() -> None:
    rng, rows = np.random.default_rng(0), Examples(np.ones((400, 6)) / 2, np.arange(400) % 10)
    flipped = attacks.label_flip().rows(rows, softmax(features=6, outputs=10), rng)
    np.testing.assert_array_equal(flipped.y, 9 - rows.y)
    number = attacks.label_flip().rows(Examples(rows.x, rows.y * 0.5), None, rng)
    np.testing.assert_array_equal(number.y, rows.y * -0.5)
    made = attacks.backdoor(target=3, share=0.25, width=2)
    marked = made.rows(Examples(np.concatenate([rows.x, rows.x[:1] * 2]), np.append(rows.y, 0)), None, rng)
    changed = (marked.x[:, -2:] == 1).all(axis=1)
    assert 0.18 < changed[:400].mean() < 0.32
    assert (marked.y[changed] == 3).all()
    np.testing.assert_array_equal(marked.y[~changed], np.append(rows.y, 0)[~changed])
    shown = made.trigger(rows)
    assert len(shown) == 360
    assert (shown.y == 3).all() and (rows.y == np.arange(400) % 10).all()


def test_what_no_rule_reads_is_left_out_and_said_to_be() -> None:
    """Of liars; an honest client's is refused as ever."""
    for rule in (Gather(average()), fedavg("equal")):
        run = simulate(poison(job(2).replace(algorithm=rule), LIARS, attacks.nan()), sites(), SEED)
        assert run.history[1]["clients"] == CLIENTS - len(LIARS)
        assert set(run.history[1]["failed"]) == set(LIARS)
        assert "not finite" in run.history[1]["failed"][LIARS[0]]
    with pytest.raises(QuorumError, match="nobody contributed"):
        simulate(poison(job(1), range(CLIENTS), attacks.nan()), sites(), SEED)


def test_wrong_values_are_refused() -> None:
    for share in (0.0, 0.5, -0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="share of attackers"):
            attackers(10, share)
    assert len(attackers(10, 0.01)) == 1
    assert attackers(10, 0.3, 1) != attackers(10, 0.3, 2)
    for values in ({"share": 0.0}, {"share": 1.5}, {"width": 0}):
        with pytest.raises(ConfigError, match="a backdoor needs"):
            attacks.backdoor(**values)
    integers = Job(softmax(lr=0.1), chain(mean(), ring(32)), rounds=2)
    with pytest.raises(ConfigError, match="leave ring out"):
        poison(integers, [0], build("attack", "foe"))


def test_the_command_prints_what_each_attack_leaves(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "job.toml"
    path.write_text(
        'rounds = 5\n[data]\nname = "digits"\nclients = 10\n[learner]\nname = "softmax"\nlr = 0.1\n'
    )
    words = ["attack", "poison", str(path), "--only", "foe", "backdoor", "--attackers", "0.3"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["attackers"]) == 3
    assert [t["attack"] for t in found["trials"]] == ["none", "none", "foe", "foe", "backdoor", "backdoor"]
    assert cli.main([*words, "--set", "algorithm.name=robust"]) == 0
    assert "level(then=within(then=nnm(f=0.2, then=krum(f=0.2))))" in capsys.readouterr().out
    assert cli.main(["attack", "poison", str(path), "--only", "nonsense"]) == 2
    assert "no attack is called" in capsys.readouterr().err
