"""What a model has changed by travels in its place, to members that hold the one before."""

import pytest

from atoll.control.engine.asks import Asks
from atoll.control.engine.learning import Learning
from atoll.control.engine.work import Work
from atoll.transport.deltas import Deltas
from tests.federation.faults import DATA, TABLE, expected, leaves
from tests.federation.world import PROCESS, World, run

WIDE = {"name": "mlp", "hidden": [256], "lr": 0.1}
THIN = {"name": "small", "up": {"name": "topk", "fraction": 0.1}, "down": {"name": "thin", "fraction": 0.02}}
FEW = {"name": "sample", "fraction": 0.3}


def played(folder, table, edges):
    """The params, and the bytes that went to members."""

    async def main():
        world = World(folder, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        run_id = world.submit(table, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        hosts = [world.processes[name].node.host for name in ("coordinator", *world.edges)]
        down = sum(said["down"] for host in hosts for said in host.asks.live.values())
        return leaves(world.params(run_id)), down

    return run(main())


@pytest.mark.parametrize("edges", [0, 2])
def test_thin_steps_are_sent_as_deltas_and_give_the_same_model(tmp_path, edges, monkeypatch):
    table = {**TABLE, "learner": WIDE, "algorithm": THIN, "rounds": 6}
    params, down = played(tmp_path / "deltas", table, edges)
    assert params == expected(table, 5)
    with monkeypatch.context() as patched:

        async def whole(*_):
            return None

        patched.setattr(Deltas, "path", whole)
        same, more = played(tmp_path / "whole", table, edges)
    assert same == params
    assert down < 0.5 * more


def sizes(monkeypatch):
    """Bytes of each model or delta that is sent to a client, in their order."""
    sent = []
    before = Asks.sends

    def sends(self, name, size):
        if name.startswith("client"):
            sent.append(size)
        before(self, name, size)

    monkeypatch.setattr(Asks, "sends", sends)
    return sent


@pytest.mark.parametrize("edges", [0, 2])
def test_nobody_downloads_a_thin_model_whole_however_long_he_was_not_drawn(tmp_path, edges, monkeypatch):
    table = {**TABLE, "learner": WIDE, "algorithm": THIN, "rounds": 12, "cohort": FEW, "sites": False}
    sent = sizes(monkeypatch)
    params, _ = played(tmp_path / "made", table, edges)
    assert params == expected(table, 5)
    whole = sum(len(leaf) for leaf in params.values())
    assert sent
    assert max(sent) < 0.5 * whole


def test_a_client_that_makes_another_first_model_downloads_it(tmp_path, monkeypatch):
    """As another version of a library may draw."""
    table = {**TABLE, "learner": WIDE, "algorithm": THIN, "rounds": 2, "sites": False}
    sent, first = sizes(monkeypatch), Work.first

    def other(self):
        made = first(self)
        return made if PROCESS.get().name == "coordinator" else made.zeros()

    monkeypatch.setattr(Work, "first", other)
    params, _ = played(tmp_path, table, 0)
    assert params == expected(table, 5)
    whole = sum(len(leaf) for leaf in params.values())
    assert sum(size > 0.5 * whole for size in sent) == len(DATA)


def test_a_client_looks_at_its_policy_before_it_makes_a_model(tmp_path, monkeypatch):
    seen, first, allowed = {}, Work.first, Learning._allowed

    def made(self):
        seen.setdefault(PROCESS.get().name, []).append("made")
        return first(self)

    def looked(self, asked):
        seen.setdefault(PROCESS.get().name, []).append("looked")
        allowed(self, asked)

    monkeypatch.setattr(Work, "first", made)
    monkeypatch.setattr(Learning, "_allowed", looked)
    played(tmp_path, {**TABLE, "learner": WIDE, "algorithm": THIN, "rounds": 2, "sites": False}, 0)
    assert seen.pop("coordinator") == ["made"]
    assert len(seen) == len(DATA)
    assert all(did[:2] == ["looked", "made"] for did in seen.values())
    assert all(did.count("made") == 1 for did in seen.values())


def test_models_that_move_everywhere_are_sent_whole(tmp_path, monkeypatch):
    """Packing what is no smaller would cost more than it saves."""

    async def asked(*_):
        raise AssertionError("a delta was made")

    monkeypatch.setattr(Deltas, "path", asked)
    table = {**TABLE, "learner": WIDE, "rounds": 3}
    assert played(tmp_path, table, 0)[0] == expected(table, 5)
