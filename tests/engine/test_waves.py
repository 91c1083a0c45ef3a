"""Roll-outs in a fleet: whose turn it is, when it is over, and worlds in which everybody may die."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from atoll.control.engine import rollouts, waves
from atoll.control.settings import Rollout
from atoll.control.store import Store
from atoll.core.errors import ConfigError, ProtocolError
from atoll.privacy.keys import Authority, Identity, new_key, open_model, request, sign_model
from atoll.privacy.orders import Gates, Order
from atoll.serve import rollout
from atoll.serve.evidence import Pair
from atoll.serve.rollout import Line
from tests.store.fresh import opened

NOW = 1_800_000_000.0
OURS = Authority.new("lagoon", now=NOW)
KEY = new_key()
CHAIN = OURS.sign(request(KEY, "lagoon", "client", "any"), role="coordinator", name="hub", now=NOW)
PLAN = Rollout(shadow=0, canary=0.5, gates=Gates(None, 0.3, None, None, least=40))
HERE = dict.fromkeys("abcdefgh", True)


def order(wave: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": "m", "number": 3, "version": 2, "wave": wave, **more}


def said(stage: str, version: int = 1, trial: int = 2, number: int = 3) -> dict[str, Any]:
    return {"stage": stage, "version": version, "trial": trial, "number": number, "reason": "it differs"}


TOOK, BACK, TRIES = said("served", 2, 0), said("back"), said("canary")


def test_whose_turn_is_first() -> None:
    assert waves.first(Rollout(nodes=("b", "a")), "m", 1, sorted(HERE)) == ["a", "b"]
    turns = {tuple(waves.first(Rollout(first=0.25), "m", n, sorted(HERE))) for n in range(40)}
    assert {len(turn) for turn in turns} == {2} and len(turns) > 10  # another part each time
    assert waves.first(Rollout(first=0.25), "m", 1, ["a"]) == ["a"]
    assert waves.first(Rollout(), "m", 1, []) == []


def test_what_is_to_happen_next() -> None:
    plan = Rollout(nodes=("a", "b"), back=0.5)

    def next_is(stages: Any, here: Any = HERE, wave: int = 0) -> str:
        return waves.decide(plan, order(wave), here, stages)[0]

    assert next_is({}) == ""
    assert next_is({"a": TOOK, "b": TRIES}) == ""
    assert next_is({"a": TOOK, "b": said("served", 1, 0, 2)}) == ""  # it has not heard of it
    assert next_is({"a": TOOK, "b": TOOK}) == "wave"
    assert next_is({"a": TOOK, "b": TRIES}, {**HERE, "b": False}) == "wave"  # who is away is not waited for
    assert next_is({"a": BACK, "b": TRIES}) == "back"
    assert next_is({"a": TOOK, "b": TRIES, "c": BACK}) == ""  # not its turn: it was back before
    everybody = dict.fromkeys(HERE, TOOK)
    assert next_is(everybody, wave=1) == "done"
    assert next_is({**everybody, "c": BACK}, wave=1) == "done"
    assert next_is({**everybody, **dict.fromkeys("cdef", BACK)}, wave=1) == "back"
    assert waves.decide(plan, order(), HERE, {"a": BACK})[1] == "1 of 2 took it back; a: it differs"


def test_what_members_say_is_read_with_care() -> None:
    good = {"name": "m", "version": 1, "trial": 2, "stage": "back", "order": 3, "reason": "x" * 900}
    name, kept = rollouts.read({**good, "figures": {"psi": 0.25, "nan": float("nan"), "text": "a"}}) or (
        "",
        {},
    )
    assert (name, kept["figures"], len(kept["reason"])) == ("m", {"psi": 0.25}, 500)
    for change in ({"name": "../m"}, {"version": -1}, {"trial": "2"}, {"stage": "best"}, {"order": None}):
        assert rollouts.read({**good, **change}) is None


class Member:
    """A client's lines, as they are in memory and on its disk."""

    def __init__(self, name: str, dice: Random) -> None:
        self.name, self.dice = name, dice
        self.line = self.disk = Line()
        self.online = True

    def hears(self, letter: dict[str, Any]) -> None:
        if "nodes" in letter and letter["nodes"] is not None and self.name not in letter["nodes"]:
            return
        if self.line.number >= letter.get("order", 0) and self.line.newest >= letter["version"]:
            return
        fields = open_model(letter["manifest"], OURS.root, now=None, above=self.line.newest)
        told = fields.get("order")
        given = None if told is None else msgspec.convert(told, Order)
        try:
            after, _ = rollout.accepted(self.line, fields["version"], given, fields["takes_back"], 0.0)
        except ProtocolError:
            return
        self.line = self.disk = after

    def works(self, requests: int, bad: float) -> None:
        for _ in range(requests):
            trial = self.line.candidate
            if trial is None:
                return
            pair = Pair([1], [1 if self.dice.random() > bad else 0], True, (1e-3, 1e-3), True)
            self.line, move = rollout.compared(self.line, trial.version, pair, 0.0)
            if move is not None:
                self.disk = self.line

    def dies(self) -> None:
        self.line, _ = rollout.started(self.disk, 0.0)
        self.disk = self.line

    def tells(self, store: Store) -> None:
        if self.line.champion:
            found = rollouts.read({"name": "m", **rollout.told(self.line)})
            assert found is not None
            store.staged(self.name, *found)


class Fleet:
    """A coordinator's store and its members; whatever happens is drawn by a seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, Random(seed)
        self.store = opened(folder, clock=self._tick)
        self.identity = Identity(KEY, CHAIN, OURS.root)
        self.members = [Member(f"node-{k}", Random(seed * 100 + k)) for k in range(self.dice.randint(2, 7))]
        for member in self.members:
            self.store.node_seen(member.name, "client", {"serves": True})
        self.register()

    now = NOW

    def _tick(self) -> float:
        self.now += 1.0
        return self.now

    def register(self, **more: Any) -> int:
        fields = {"federation": "lagoon", "run": "r", "name": "m", "created": NOW, **more}
        blob = self.store.blobs.put(f"model {len(self.store.models())}".encode())
        digest = hashlib.sha256(blob.encode()).hexdigest()
        fields["sha256"] = digest
        return self.store.model_add(
            "r", "m", blob, lambda v: sign_model(KEY, CHAIN, {**fields, "version": v}), {"onnx": blob}
        )

    def follow(self) -> None:
        if rollouts.due(self.store):
            rollouts.follow(self.store, self.identity)

    def dies(self) -> None:
        """The coordinator, and it comes again: it has what is in its store."""
        self.store.close()
        self.store = opened(self.folder, clock=self._tick)

    def post(self, member: Member) -> None:
        if member.online:
            for letter in rollouts.letters(self.store):
                member.hears(letter)

    def happens(self, bad: float) -> None:
        member = self.dice.choice(self.members)
        match self.dice.randrange(12):
            case 0:
                member.dies()
            case 1:
                member.online = not member.online
                if member.online:
                    self.store.node_seen(member.name, "client", {"serves": True})
                else:
                    self.store.node_gone(member.name)
            case 2:
                self.dies()
            case 3 | 4:
                self.follow()
            case 5 | 6 | 7:
                self.post(member)
            case 8 | 9:
                if member.online:
                    member.tells(self.store)
            case _:
                member.works(self.dice.randint(1, 60), bad)

    def settles(self, bad: float) -> None:
        """From now on nobody dies and everybody is here."""
        for member in self.members:
            member.online = True
            self.store.node_seen(member.name, "client", {"serves": True})
        before: Any = None
        for _ in range(40):
            self.follow()
            for member in self.members:
                self.post(member)
                member.works(200, bad)
                member.tells(self.store)
            now = [member.line for member in self.members], self.store.head()
            if now == before:
                return
            before = now


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    made: list[Fleet] = []

    def at(seed: int) -> Fleet:
        made.append(Fleet(tmp_path / str(seed), seed))
        return made[-1]

    yield at
    for one in made:
        one.store.close()


@pytest.mark.parametrize("seed", range(8))
def test_worlds(seed: int, fleet: Any) -> None:
    """A good model comes to all, a bad one is taken back by all; at no moment has anybody no champion."""
    world, bad = fleet(seed), 0.02 if seed % 2 else 0.9
    for member in world.members:
        world.post(member)
        member.tells(world.store)
    assert {m.line.champion for m in world.members} == {1}
    assert world.register(order={"number": 1, "stage": "held"}) == 2
    world.store.order_add("m", 2, "rollout", msgspec.to_builtins(PLAN), "ann")
    for _ in range(world.dice.randint(40, 120)):
        world.happens(bad)
        assert {m.line.champion for m in world.members} <= {1, 2}
    world.settles(bad)
    states = [(o["kind"], o["state"]) for o in world.store.orders("m")]
    ended = {m.line.champion for m in world.members}
    tired = sum("the process ended" in why for m in world.members for why in m.line.back.values())
    if seed % 2 and not tired:
        assert (states, ended) == ([("rollout", "done"), ("promote", "done")], {2})
    elif not seed % 2:
        assert (states, ended) == ([("rollout", "back"), ("rollback", "done")], {1})
    assert world.store.verify().ok
    for stage in world.store.stages("m"):
        assert stage["version"] in ended


def test_a_held_version_goes_nowhere_and_a_newer_one_for_all_ends_a_roll_out(fleet: Any) -> None:
    world = fleet(1)
    assert world.register(order={"number": 1, "stage": "held"}) == 2
    assert [letter["version"] for letter in rollouts.letters(world.store)] == [1]
    world.store.order_add("m", 2, "rollout", msgspec.to_builtins(PLAN), "ann")
    assert [letter["version"] for letter in rollouts.letters(world.store)] == [1]  # not signed yet
    world.follow()
    one, two = rollouts.letters(world.store)
    assert (one["version"], two["version"], two["order"], two["slot"]) == (1, 2, 1, "trial")
    assert set(two["nodes"]) < {m.name for m in world.members}
    assert world.register() == 3
    world.follow()
    assert [o["state"] for o in world.store.orders("m")] == ["replaced"]
    assert [letter["version"] for letter in rollouts.letters(world.store)] == [3]


def test_who_took_it_back_keeps_the_old_one_until_it_is_ordered_again(fleet: Any) -> None:
    world = fleet(3)
    stubborn, *others = world.members
    for member in world.members:
        world.post(member)
        member.tells(world.store)
    world.register(order={"number": 1, "stage": "held"})
    plan = msgspec.to_builtins(msgspec.structs.replace(PLAN, first=1.0, back=1.0))
    world.store.order_add("m", 2, "rollout", plan, "ann")
    for _ in range(4):
        world.follow()
        for member in world.members:
            world.post(member)
            member.works(200, 0.9 if member is stubborn else 0.0)
            member.tells(world.store)
    assert stubborn.line.champion == 1 and {m.line.champion for m in others} == {2}
    assert [o["kind"] for o in world.store.orders("m")] == ["rollout", "promote"]
    world.store.order_add("m", 2, "rollout", plan, "ann", "it was a broken sensor")
    world.settles(0.0)
    assert {m.line.champion for m in world.members} == {2}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("later", "$.rollout"),
        ({"first": 0.0}, "$.rollout.first"),
        ({"canary": 2.0}, "$.rollout.canary"),
        ({"gates": {"eror": 1.0}}, "$.rollout.gates"),
        (3, "$.rollout"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_path(value: Any, path: str) -> None:
    from atoll.control.config import parse

    with pytest.raises(ConfigError) as failed:
        parse({"learner": "softmax", "rollout": value})
    assert failed.value.path == path
    for good in ("now", "held", "staged", {"canary": 0.2, "gates": {"error": 0.1}}):
        parse({"learner": "softmax", "rollout": good})
