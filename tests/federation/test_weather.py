"""Who holds back by its own policy is not asked and does not work (weather.py)."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from atoll.control.engine.fleet import Seen
from atoll.control.engine.upkeep import Upkeep
from atoll.control.settings import Power
from tests.federation.faults import DATA, TABLE
from tests.federation.weather import weathered
from tests.federation.world import World, run

SEEDS = 18  # `make nightly` plays ten thousand


def test_who_rests_after_work_helps_to_open_the_sum_it_is_in(tmp_path) -> None:
    """Half of the time is rest, and no vector is lost by it."""

    async def main():
        world = World(tmp_path, DATA, edges=2)
        world.power = {name: Power(duty=0.5, every=0.5) for name in world.clients}
        world.start_all()
        await world.gathered()
        run_id = world.submit({**TABLE, "exchange": {"name": "secure_sum", "largest": 65536.0}}, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record["reason"]
        return world.store.history(run_id)[1:]

    for record in run(main()):
        assert record["clients"] == record["cohort"] >= 2, record["failed"]


def test_control_who_is_asked_all_the_same_is_seen(tmp_path) -> None:
    with patch.object(Seen, "held", ""):
        wrong = [text for seed in range(3) for text in run(weathered(tmp_path / str(seed), seed))[0]]
    assert any("was asked for" in text for text in wrong)
    assert not any("worked" in text for text in wrong), "it refuses by itself"


def test_control_who_works_all_the_same_is_seen(tmp_path) -> None:
    async def careless(self, work, *, step=False):
        return await work()

    with patch.object(Upkeep, "during", careless):
        wrong = [text for seed in range(3) for text in run(weathered(tmp_path / str(seed), seed))[0]]
    assert any("against its policy" in text for text in wrong)


@pytest.mark.parametrize("seed", [51, 156, 185, 318, 549, 1129])
def test_a_run_outlives_that_all_who_could_be_asked_hold_back(tmp_path, seed) -> None:
    """Killed while they hold back, remembered so by a coordinator that was killed, asked before they do."""
    wrong, seer = run(weathered(tmp_path, seed))
    assert not wrong
    assert seer.state == "done"


@pytest.mark.parametrize("seed", [2452, 4013, 4195])
def test_who_told_its_loss_and_rests_from_that_is_waited_for(tmp_path, seed) -> None:
    wrong, seer = run(weathered(tmp_path, seed))
    assert not wrong
    assert seer.state == "done"


@pytest.mark.parametrize("seed", [4772, 5086, 7180, 7838, 20276, 21866, 23868])
def test_an_asynchronous_run_goes_on_while_clients_come_and_go(tmp_path, seed) -> None:
    """Its coordinator was killed, and posts what it posted; who was posted a task and holds back fails it."""
    wrong, seer = run(weathered(tmp_path, seed))
    assert not wrong
    assert seer.state == "done"


@pytest.mark.parametrize("block", range(3))
def test_who_holds_back_is_not_asked_and_does_not_work(tmp_path, block) -> None:
    found, notices, work = {}, 0, 0
    for seed in range(block * SEEDS // 3, (block + 1) * SEEDS // 3):
        wrong, seer = run(weathered(tmp_path / str(seed), seed))
        notices += seer.notices
        work += sum(map(len, seer.work.values()))
        if wrong:
            found[seed] = wrong
    assert found == {}
    assert notices > 20 and work > 50  # control: they do hold back, and do work
