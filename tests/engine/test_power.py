"""When a node holds back: each rule by itself, what sensors say, and a node that keeps to it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from atoll.control.engine.policy import closed
from atoll.control.engine.power import DAY, Held, Seen, Spent, carried, checked, held, rested
from atoll.control.engine.sensors import Energy, Meter, Sensors, metered
from atoll.control.engine.upkeep import Upkeep
from atoll.control.settings import Client, Power, make
from atoll.core.errors import ConfigError, Refused
from atoll.learn.failure import HELD
from tests.engine.says import Says
from tests.federation.virtual import run

FINE = Seen(mains=True, battery=0.9, temperature=40.0, metered=False)
NOON = 100.5 * DAY


def why(power: Power, seen: Seen = FINE, before: str = "") -> Held:
    return held(power, seen, Spent(), Held(before), NOON)


def test_without_settings_nothing_holds() -> None:
    assert why(Power(), Seen(mains=False, battery=0.01, temperature=None, metered=None)) == Held()


@pytest.mark.parametrize(
    ("power", "seen", "rule"),
    [
        (Power(mains=True), Seen(mains=False), "mains"),
        (Power(mains=True), Seen(mains=True, battery=0.1), ""),
        (Power(battery=0.3), Seen(mains=False, battery=0.29), "battery"),
        (Power(battery=0.3), Seen(mains=False, battery=0.3), ""),
        (Power(battery=0.3), Seen(mains=True, battery=0.1), ""),
        (Power(battery=0.3), Seen(mains=True), ""),
        (Power(temperature=70), Seen(temperature=70.1), "temperature"),
        (Power(temperature=70), Seen(temperature=70.0), ""),
        (Power(temperature=70), Seen(), "temperature"),
        (Power(metered_bytes=0), Seen(metered=True), "metered_bytes"),
        (Power(metered_bytes=0), Seen(metered=False), ""),
        (Power(metered_bytes=0), Seen(metered=None), "metered_bytes"),
    ],
)
def test_each_rule_holds_where_it_should(power, seen, rule) -> None:
    found = why(power, seen)
    assert (found.rule, bool(found.reason)) == (rule, bool(rule))


def test_what_holds_lets_go_a_little_later() -> None:
    battery, warm = Power(battery=0.3), Power(temperature=70)
    assert why(battery, Seen(mains=False, battery=0.32), before="battery").rule == "battery"
    assert why(battery, Seen(mains=False, battery=0.36), before="battery").rule == ""
    assert why(Power(battery=1.0), Seen(mains=False, battery=1.0), before="battery").rule == ""
    assert why(warm, Seen(temperature=66), before="temperature").rule == "temperature"
    assert why(warm, Seen(temperature=64), before="temperature").rule == ""


def test_bytes_of_a_day_are_counted_and_a_new_day_begins_anew() -> None:
    power, metered = Power(metered_bytes=100), Seen(metered=True)
    spent = carried(carried(Spent(), 60, NOON), 40, NOON + 1)
    found = held(power, metered, spent, Held(), NOON + 2)
    assert (found.rule, found.until) == ("metered_bytes", 101 * DAY)
    assert held(power, metered, spent, Held(), found.until) == Held()
    assert carried(spent, 7, found.until).bytes == 7
    assert why(Power(metered_bytes=0), metered).until == 0, "nobody knows when the link is another"


def test_work_is_its_share_of_work_and_rest() -> None:
    spent = rested(Power(duty=0.25), Spent(), NOON, NOON + 10)
    assert spent.rest == NOON + 40
    assert held(Power(duty=0.25), FINE, spent, Held(), NOON + 39).until == NOON + 40
    assert held(Power(duty=0.25), FINE, spent, Held(), NOON + 40) == Held()
    assert rested(Power(), Spent(), NOON, NOON + 10) == Spent()


@pytest.mark.parametrize(
    ("values", "path"),
    [({"battery": 30}, "battery"), ({"duty": 0}, "duty"), ({"metered_bytes": -1}, "metered_bytes")],
)
def test_values_out_of_range_are_refused(values, path) -> None:
    with pytest.raises(ConfigError, match=rf"\$\.power\.{path}"):
        checked(make(Client, {"power": values}).power)


def test_outside_its_hours_it_says_when_they_begin() -> None:
    assert [closed("22:00-06:00", 60 * hour) for hour in (5, 6, 12, 22)] == [0, 960, 600, 0]
    assert closed("", 0) == 0
    assert held(Power(), FINE, Spent(), Held(), NOON, NOON + 600) == Held(
        "hours", "it is outside its hours", NOON + 600
    )


# -- sensors ------------------------------------------------------------------------------------


def files(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("0x3A", ":")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def supply(root: Path, name: str, **texts: str) -> None:
    files(root, **{f"sys__class__power_supply__{name}__{key}": text + "\n" for key, text in texts.items()})


def test_a_laptop_and_its_mouse(tmp_path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="41", power_now="9500000")
    supply(tmp_path, "mouse", type="Battery", scope="Device", status="Discharging", capacity="3")
    sensors = Sensors("free", tmp_path)
    assert sensors() == Seen(mains=False, battery=0.41, temperature=None, metered=False)
    assert sensors.drain() == 9.5
    supply(tmp_path, "AC", online="1")
    assert sensors().mains
    supply(tmp_path, "BAT0", status="Charging")
    assert sensors.drain() is None


def test_a_board_whose_battery_says_volts_and_has_no_mains_entry(tmp_path) -> None:
    supply(
        tmp_path, "bat", type="Battery", status="Discharging", energy_now="30", energy_full="40",
        voltage_now="4000000", current_now="500000",
    )  # fmt: skip
    sensors = Sensors("metered", tmp_path)
    assert sensors() == Seen(mains=False, battery=0.75, temperature=None, metered=True)
    assert sensors.drain() == pytest.approx(2.0)
    supply(tmp_path, "bat", status="Full")
    assert sensors().mains


def test_a_server_without_battery_is_on_mains(tmp_path) -> None:
    (tmp_path / "sys/class/power_supply").mkdir(parents=True)
    assert Sensors("free", tmp_path)() == Seen(mains=True, battery=None, temperature=None, metered=False)


def test_the_hottest_sensor_counts_and_nonsense_does_not(tmp_path) -> None:
    files(
        tmp_path,
        sys__class__thermal__thermal_zone0__temp="48000",
        sys__class__hwmon__hwmon1__temp2_input="61500",
        sys__class__hwmon__hwmon1__temp3_input="-274000",
        sys__class__hwmon__hwmon1__temp4_input="no",
    )
    assert Sensors("free", tmp_path)().temperature == 61.5


@pytest.mark.parametrize(
    ("said", "metered"),
    [("yes", True), ("yes (guessed)", True), ("no", False), ("no (guessed)", False), ("unknown", None)],
)
def test_networkmanager_is_asked_about_the_default_route(tmp_path, said, metered) -> None:
    files(tmp_path, proc__net__route="Iface Destination\nwlan0 00000000 0\neth7 0000A8C0 0\n")
    text = f"GENERAL.DEVICE:eth7\nGENERAL.METERED:yes\n\nGENERAL.DEVICE:wlan0\nGENERAL.METERED:{said}\n"
    assert Sensors("auto", tmp_path, lambda words: text)().metered is metered
    assert Sensors("auto", tmp_path, lambda words: "")().metered is None


def test_this_machine_can_be_asked() -> None:
    seen = Sensors()()
    assert seen.mains in (True, False)
    assert seen.temperature is None or -40 < seen.temperature < 150


def test_energy_is_measured_where_it_can_be_and_else_an_estimate(tmp_path) -> None:
    zone = "sys__class__powercap__intel-rapl0x3A"
    sensors = Sensors("free", tmp_path)
    assert Meter(sensors, Power()).used(10) is None
    assert Meter(sensors, Power(watts=7.5)).used(10) == Energy(75.0, "estimate")
    supply(tmp_path, "bat", type="Battery", status="Discharging", power_now="4000000")
    assert Meter(sensors, Power(watts=7.5)).used(10) == Energy(40.0, "battery")
    files(tmp_path, **{f"{zone}0__energy_uj": "5000000", f"{zone}0__max_energy_range_uj": "9000000"})
    files(tmp_path, **{f"{zone}1__energy_uj": "1000000", f"{zone}00x3A0__energy_uj": "777"})
    meter = Meter(sensors, Power(watts=7.5))
    files(tmp_path, **{f"{zone}0__energy_uj": "2000000", f"{zone}1__energy_uj": "2500000"})
    assert meter.used(10) == Energy(7.5, "rapl"), "one counter was full and began anew: 6 + 1.5 J"


# -- a node ---------------------------------------------------------------------------------------


def node(folder: Path, power: Power) -> tuple[Upkeep, Says, list[dict]]:
    said: list[dict] = []
    sensors = Says(FINE)
    clock = asyncio.get_running_loop().time
    return Upkeep(power, folder, sensors, lambda: NOON + clock(), said.append), sensors, said


async def work(seconds: float = 2.0) -> str:
    await asyncio.sleep(seconds)
    return "done"


def test_it_refuses_before_work_and_in_its_midst_and_says_so_once(tmp_path) -> None:
    async def main() -> None:
        upkeep, sensors, said = node(tmp_path, Power(battery=0.5, every=0.5))
        looking = asyncio.ensure_future(upkeep.run())
        assert await upkeep.during(work) == "done"
        asyncio.get_running_loop().call_later(1.2, setattr, sensors, "seen", Seen(mains=False, battery=0.2))
        began = asyncio.get_running_loop().time()
        with pytest.raises(Refused, match=f"{HELD}its battery is below 50%"):
            await upkeep.during(lambda: work(60))
        assert 1.2 <= asyncio.get_running_loop().time() - began <= 1.8
        with pytest.raises(Refused, match=HELD):
            await upkeep.during(work)
        await asyncio.sleep(3)
        assert [values["held"] for values in said] == ["its battery is below 50%"]
        sensors.seen = FINE
        await asyncio.sleep(1)
        assert [values["held"] for values in said] == ["its battery is below 50%", ""]
        assert await upkeep.during(work) == "done"
        looking.cancel()

    run(main())


def test_it_rests_after_work_and_says_until_when(tmp_path) -> None:
    async def main() -> None:
        upkeep, _, said = node(tmp_path, Power(duty=0.25, watts=10.0))
        await upkeep.during(work)
        assert said[-1]["until"] == NOON + 8.0
        assert (said[-1]["joules"], said[-1]["source"]) == (20.0, "estimate")
        with pytest.raises(Refused, match="rests after work, 25% of its time"):
            await upkeep.during(work)
        await asyncio.sleep(6.1)
        assert said[-1]["held"] == ""
        assert await upkeep.during(work) == "done"

    run(main())


def test_one_that_was_killed_at_work_rests_as_if_it_had_stopped_then(tmp_path) -> None:
    async def main() -> None:
        power = Power(duty=0.5, every=1.0)
        upkeep, _, _ = node(tmp_path, power)
        looking = asyncio.ensure_future(upkeep.run())
        doomed = asyncio.ensure_future(upkeep.during(lambda: work(60)))
        await asyncio.sleep(10.5)
        looking.cancel()
        again, _, _ = node(tmp_path, power)
        await again.look()
        assert again.held.rule == "duty"
        assert again.held.until == pytest.approx(NOON + 20, abs=1.1)
        doomed.cancel()

    run(main())


def test_bytes_on_a_metered_link_are_spent_over_restarts(tmp_path) -> None:
    async def main() -> None:
        power = Power(metered_bytes=100)
        upkeep, sensors, _ = node(tmp_path, power)
        sensors.seen = Seen(metered=True)

        async def carry() -> None:
            upkeep.carried(100)

        await upkeep.during(carry)
        assert upkeep.held.rule == "metered_bytes"
        again, sensors, _ = node(tmp_path, power)
        sensors.seen = Seen(metered=True)
        await again.look()
        assert again.held.rule == "metered_bytes"
        sensors.seen = Seen(metered=False)
        await again.look()
        assert again.held == Held()

    run(main())


def test_what_work_took_is_measured_by_counters_or_not_at_all(tmp_path) -> None:
    place = tmp_path / "sys/class/powercap/intel-rapl:0"
    place.mkdir(parents=True)
    (place / "energy_uj").write_text("5000000")

    async def work() -> dict[str, float]:
        (place / "energy_uj").write_text("7500000")
        return {"cpu_seconds": 1.0}

    sensors, power = Sensors(root=tmp_path), Power(watts=10.0)
    found = asyncio.run(metered(sensors, power, work))
    assert found == {"cpu_seconds": 1.0, "joules": 2.5, "source": "rapl"}
    (place / "energy_uj").unlink()
    place.rmdir()

    async def unseen() -> dict[str, float]:
        return {"cpu_seconds": 1.0}

    assert asyncio.run(metered(sensors, power, unseen)) == {"cpu_seconds": 1.0}


def test_hours_hold_until_they_begin(tmp_path) -> None:
    async def main() -> None:
        local, loop = time.localtime(NOON), asyncio.get_running_loop()
        minute = (local.tm_hour * 60 + local.tm_min + 10) % 1440
        later = (minute + 60) % 1440
        hours = f"{minute // 60:02}:{minute % 60:02}-{later // 60:02}:{later % 60:02}"
        said: list[dict] = []
        upkeep = Upkeep(Power(), tmp_path, Says(FINE), lambda: NOON + loop.time(), said.append, hours)
        await upkeep.look()
        assert (said[-1]["held"], said[-1]["until"]) == ("it is outside its hours", NOON + 600)
        await asyncio.sleep(601)
        assert said[-1]["held"] == ""
        assert await upkeep.during(work) == "done"

    run(main())


def test_without_settings_it_neither_looks_nor_says_anything(tmp_path) -> None:
    async def main() -> None:
        upkeep, sensors, said = node(tmp_path, Power())
        sensors.seen = Seen(mains=False, battery=0.0, temperature=99.0, metered=True)
        assert await upkeep.during(work) == "done"
        assert not said and not upkeep.needed and not list(tmp_path.iterdir())

    run(main())
