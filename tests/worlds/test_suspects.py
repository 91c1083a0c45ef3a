"""Liars in rounds: named by their record, set aside where asked for, in every trouble and after it."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.attack import Attack, poison
from atoll.core.errors import CompositionError
from atoll.core.message import Contribution
from atoll.core.rng import Rng
from atoll.job import Job, flat, tree
from atoll.learn import rounds
from atoll.learn.algorithm import fedavg
from atoll.learn.aside import aside
from atoll.learn.defend import robust
from atoll.learn.detect import Record, suspects
from atoll.learn.rules import average, fltrust, krum, level, median, nnm, norm_bound, trimmed_mean
from atoll.learn.rules.rule import Rule, withstood
from atoll.learn.secure import secure_sum
from atoll.learn.select import Everyone, poisson, power_of_choice, sample
from atoll.run import simulate
from atoll.simulate.faults import Crash, World
from tests.worlds.cases import CLIENTS, SAME, SLOW, clients, last_records

LIAR = 5
NAN = Attack("nan", send=lambda honest, own, rng: own * np.nan)
ROUNDS = 6


class Pull:
    """Towards a point that is nearly everybody's; each client's own noise makes no two updates the same.

    Client number `liar` sends its update with the other sign.
    """

    def __init__(self, liar=None):
        self.liar = liar

    def init(self, rng):
        return {"w": np.zeros(40, np.float32)}

    def fit(self, params, data, ctx):
        step = 0.2 * (1 + 0.3 * ctx.rng.normal(size=40)) - 0.1 * params["w"]
        sign = -1.0 if ctx.client == self.liar else 1.0
        return Contribution({"w": np.float32(sign * step)}, 1.0, {"far": float(np.abs(step).max())})

    def evaluate(self, params, data, ctx):
        return {"loss": float(np.square(params["w"] - 2).mean())}


def job(**values):
    made = {"set_aside": True, **values}
    shape, liar = made.pop("topology", flat()), made.pop("liar", None)
    cohort = made.pop("cohort", Everyone())
    return Job(Pull(liar), robust(krum(0.2), **made), rounds=ROUNDS, topology=shape, cohort=cohort)


def lied_to(**values):
    return job(liar=LIAR, **values)


def test_a_liar_is_named_after_three_rounds_and_left_out_of_those_that_follow():
    run = simulate(lied_to(), clients(), 1)
    assert [r["suspects"] for r in run.history[1:]] == [[], [], [LIAR], [LIAR], [LIAR], [LIAR]]
    assert [r["aside"] for r in run.history[1:]] == [[], [], [], [LIAR], [LIAR], [LIAR]]
    assert [r["clients"] for r in run.history[1:]] == [8, 8, 8, 7, 7, 7]
    assert LIAR in run.history[2]["sites"] and LIAR not in run.history[4]["sites"]
    assert run.suspects == (LIAR,)
    scores = run.history[3]["scores"]
    assert scores.keys() == set(range(CLIENTS))
    assert all((score >= 0.67) == (client == LIAR) for client, score in scores.items())


@pytest.mark.parametrize("rule", [median(), fltrust(0), nnm(0.2, trimmed_mean(0.2)), krum(1)], ids=str)
def test_whatever_the_rule_the_liar_is_named(rule):
    run = simulate(Job(Pull(LIAR), robust(rule, set_aside=True), rounds=ROUNDS), clients(), 1)
    assert [r["aside"] for r in run.history[1:]] == [[], [], [], [LIAR], [LIAR], [LIAR]]


def test_control_it_is_only_named_unless_that_is_asked_for_and_nobody_is_where_nobody_lies():
    named = simulate(lied_to(set_aside=False), clients(), 1)
    assert named.suspects == (LIAR,)
    assert all(r["aside"] == [] and r["clients"] == CLIENTS for r in named.history[1:])
    assert simulate(job(), clients(), 1).suspects == ()
    plain = simulate(lied_to().replace(algorithm=fedavg()), clients(), 1)
    assert plain.suspects == () and not any("suspects" in r for r in plain.history)


@pytest.mark.parametrize("shape", [tree((2,)), tree((2, 2))], ids=["edges", "three levels"])
def test_below_edges_it_is_the_same_liar_and_the_same_model(shape):
    whole = simulate(lied_to(), clients(), 2)
    run = simulate(lied_to(topology=shape), clients(), 2)
    assert run.params == whole.params
    assert [r.get("scores") for r in run.history] == [r.get("scores") for r in whole.history]


@pytest.mark.parametrize("trouble", SAME)
def test_in_trouble_it_is_the_same_liar_and_the_same_model(trouble):
    whole = simulate(lied_to(), clients(), 3)
    run = simulate(lied_to(), clients(), 3, world=SAME[trouble])
    assert run.params == whole.params
    assert [r.get("aside") for r in last_records(run.history)] == [r.get("aside") for r in whole.history]


@pytest.mark.parametrize("at", [3.0, 4.0, 5.0])
def test_after_a_crash_of_who_coordinates_the_record_stands(at):
    world = World(**SLOW, crashes=(Crash("coordinator", at, 0.5),))
    run = simulate(lied_to(), clients(), 4, world=world)
    assert len(run.history) >= ROUNDS + 1
    assert run.params == simulate(lied_to(), clients(), 4).params
    assert last_records(run.history)[-1]["aside"] == [LIAR]


@pytest.mark.parametrize("cut", range(1, ROUNDS))
def test_a_run_that_was_cut_off_goes_on_with_the_record(tmp_path, cut):
    class CutError(Exception):
        pass

    def watch(record):
        if record["round"] == cut:
            raise CutError

    whole = simulate(lied_to(), clients(), 1)
    with pytest.raises(CutError):
        simulate(lied_to(), clients(), 1, out=tmp_path / "run", watch=watch)
    again = simulate(lied_to(), clients(), 1, out=tmp_path / "run", resume=True)
    assert again.params == whole.params
    assert again.history == whole.history


def test_who_sends_what_nobody_takes_is_set_aside_as_well():
    run = simulate(poison(job(), [LIAR], NAN), clients(), 1)
    assert [r["aside"] for r in run.history[1:]] == [[], [], [], [LIAR], [LIAR], [LIAR]]
    assert LIAR not in run.history[1]["scores"] or run.history[1]["scores"][LIAR] == 0


class Diverging(Pull):
    """One client's training diverges by itself, and nobody wraps the rule."""

    def fit(self, params, data, ctx):
        made = super().fit(params, data, ctx)
        return Contribution({"w": made.update["w"] * (np.inf if ctx.client == LIAR else 1)}, 1.0)


@pytest.mark.parametrize("world", [None, World(**SLOW)], ids=["lane", "world"])
def test_an_answer_that_was_not_let_in_is_evidence(world):
    run = simulate(
        Job(Diverging(), robust(krum(0.2), set_aside=True), rounds=ROUNDS), clients(), 1, world=world
    )
    assert "its answer was not let in: client 5's update is not finite" in run.history[1]["failed"][LIAR]
    assert [r["aside"] for r in run.history[1:]] == [[], [], [], [LIAR], [LIAR], [LIAR]]
    assert run.history[-1]["failed"] == {}


def test_behind_sums_of_several_nobody_is_suspected_and_setting_aside_is_refused():
    blind = Job(Pull(), robust(median(), buckets=4), rounds=ROUNDS)
    assert not any("suspects" in r for r in simulate(blind, clients(), 1).history)
    with pytest.raises(CompositionError, match=r"no evidence about one client: leave set_aside out"):
        robust(median(), buckets=4, set_aside=True)
    with pytest.raises(CompositionError, match="must see each update and the exchange shows only their sum"):
        _ = job(set_aside=True).replace(exchange=secure_sum()).trained


def bad(*ids, worst=None):
    low = {c: Record(9, 9, 0.1, 0.0, 0.0) for c in ids}
    return low if worst is None else {**low, worst: Record(9, 9, -1.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("rule", "cohort", "named", "out"),
    [
        (krum(0.2), Everyone(), bad(3), (3,)),
        (krum(0.2), Everyone(), bad(1, 3, 4, worst=7), (1, 7)),  # two of ten, the worst first
        (krum(3), Everyone(), bad(1, 3, 4, worst=7), (7,)),  # it needs nine updates
        (krum(4), Everyone(), bad(3), ()),
        (median(), Everyone(), bad(*range(8)), (0, 1, 2, 3)),
        (average(), Everyone(), bad(3), ()),
        (fltrust(3), Everyone(), bad(3, worst=4), (4,)),
        (krum(0.2), sample(count=9), bad(3, 4), (3,)),
        (krum(2), sample(0.7), bad(3), ()),  # of nine, a cohort of six
        (krum(2), poisson(0.9), bad(3), (3,)),
        (median(), power_of_choice(2, 4), bad(3), (3,)),
        (None, Everyone(), bad(3), ()),
    ],
)
def test_no_more_are_set_aside_than_rule_and_cohort_can_do_without(rule, cohort, named, out):
    assert aside(rule, named, range(10), cohort) == out
    assert suspects(named) == tuple(sorted(named))


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (trimmed_mean(0.3), 3),
        (nnm(1, trimmed_mean(0.3)), 1),
        (level(median()), 4),
        (norm_bound(1.0), 0),
        (Rule("own", lambda stack: stack.matrix()[0]), 4),
    ],
)
def test_how_many_liars_a_rule_withstands(rule, count):
    assert withstood(rule, 10) == count


def test_a_cohort_is_drawn_from_the_others_and_keeps_its_size():
    run = simulate(lied_to(cohort=sample(count=6)), clients(), 1)
    assert run.suspects in ((LIAR,), ())
    assert all(r["cohort"] == r["clients"] == 6 for r in run.history[1:])


def test_what_earlier_runs_have_shown_counts_from_the_first_round():
    """As a real coordinator begins: with records of members from its store."""
    known = {LIAR: Record(3, 3, -1.0, 0.0, 0.0)}
    plan = rounds.Plan(Pull(), job().trained, {"a": range(CLIENTS)}, ROUNDS, records=known)
    party = type("P", (), {"key": Rng.of(0)})()
    assert rounds.left_out(plan, rounds.begin(plan, party)) == (LIAR,)
    blind = rounds.Plan(Pull(), fedavg(), {"a": range(CLIENTS)}, ROUNDS, records=known)
    assert rounds.begin(blind, party).records == {}
