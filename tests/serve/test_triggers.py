"""When a node renews, within which quota; ten thousand worlds in which neither may ever be broken."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import msgspec
import pytest

from atoll.serve import quota
from atoll.serve.quota import KINDS, Amount, Quota, reserve, settle
from atoll.serve.timetable import Hours
from atoll.serve.triggers import Rules, Start, State, What, ended, happened

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


def after(rules: Rules, *seen: tuple[float, What]) -> tuple[State, list[tuple[float, Start]]]:
    """Windows at hours after noon; what begins is over at once, and won."""
    state, starts = State(), []
    for hours, what in seen:
        state, start = happened(state, rules, what, NOON + hours * HOUR, UTC)
        if start is not None:
            starts.append((hours, start))
            state, more = ended(state, rules, NOON + hours * HOUR, UTC, won=True)
            assert more is None
    return state, starts


def hours(found: list[tuple[float, Start]]) -> list[float]:
    return [at for at, _ in found]


def test_drift_begins_it_and_no_drift_does_not() -> None:
    _, starts = after(Rules(), (0, What()), (1, What(drift=True)), (1.5, What(drift=True)), (3, What()))
    assert hours(starts) == [1]
    assert starts[0][1] == Start("tune", ("drift",), NOON + HOUR + 600)
    assert hours(after(Rules(drift=False), (1, What(drift=True)))[1]) == []


def test_the_cool_down_keeps_a_reason_that_lasts() -> None:
    drift = What(drift=True)
    _, starts = after(Rules(cool_down=2 * HOUR), (0, drift), (1, drift), (1.9, drift), (2, drift))
    assert hours(starts) == [0, 2]


def test_rows_are_counted_since_the_last_beginning() -> None:
    _, starts = after(Rules(rows=100, cool_down=0), *((i, What(rows=40)) for i in range(8)))
    assert hours(starts) == [2, 5]


def test_cron_is_made_up_for_once_after_a_pause() -> None:
    rules = Rules(cron="0 * * * *", cool_down=0)
    _, starts = after(rules, (0.5, What()), (0.9, What()), (1.1, What()), (1.2, What()), (7.5, What()))
    assert hours(starts) == [1.1, 7.5]


def test_a_reason_waits_for_the_end_of_the_blackout() -> None:
    rules = Rules(cron="0 13 * * *", blackout=("12:30-14:00",), cool_down=0)
    _, starts = after(rules, (0, What()), (1.2, What()), (1.9, What()), (2.0, What()), (2.1, What()))
    assert hours(starts) == [2.0]


def test_what_begins_ends_before_the_blackout() -> None:
    _, starts = after(Rules(blackout=("13:00-14:00",)), (0.95, What(drift=True)))
    assert starts[0][1].until == pytest.approx(NOON + HOUR)


def test_a_lost_challenge_asks_for_a_federated_run() -> None:
    rules = Rules(action="both")
    state, start = happened(State(), rules, What(drift=True), NOON, UTC)
    assert start is not None
    assert start.action == "tune"
    state, more = ended(state, rules, NOON + 60, UTC, won=False)
    assert more is not None
    assert (more.action, more.why) == ("ask", ("lost",))
    assert ended(state, rules, NOON + 61, UTC, won=False)[1] is None, "an ask that failed asks for nothing"
    dark = Rules(action="both", blackout=("12:00-13:00",))
    state = msgspec.structs.replace(State(), open="tune", began=NOON - HOUR)
    state, more = ended(state, dark, NOON + 60, UTC, won=False)
    assert more is None
    _, more = happened(state, dark, What(), NOON + HOUR, UTC)
    assert more is not None
    assert more.action == "ask"


def test_nothing_begins_while_something_is_open() -> None:
    state, start = happened(State(), Rules(cool_down=0), What(drift=True), NOON, UTC)
    assert start is not None
    assert happened(state, Rules(cool_down=0), What(drift=True), NOON + HOUR, UTC)[1] is None


@pytest.mark.parametrize("jump", [-86400.0 * 900, -1800.0, 86400.0 * 900])
def test_a_clock_that_jumps_makes_nothing_due_twice(jump: float) -> None:
    rules = Rules(cron="0 12 * * *", cool_down=HOUR)
    state, _ = happened(State(), rules, What(), NOON - 60, UTC)
    state, start = happened(state, rules, What(), NOON, UTC)
    assert start is not None
    state, _ = ended(state, rules, NOON, UTC, won=True)
    state, start = happened(state, rules, What(), NOON + jump, UTC)
    assert (start is not None) is (jump > 0), "a later day has a noon of its own"
    if start is not None:
        state, _ = ended(state, rules, NOON + jump, UTC, won=True)
    begun = 0
    for i in range(49):
        state, start = happened(state, rules, What(), NOON + jump + 1800 * (i + 1), UTC)
        if start is not None:
            begun += 1
            state, _ = ended(state, rules, NOON + jump + 1800 * (i + 1), UTC, won=True)
    assert begun == 1


# -- quotas -------------------------------------------------------------------------------------------


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    limits = Quota(cpu_minutes=10)
    state, refused = reserve(quota.State(), limits, "a", Amount(cpu_minutes=7), NOON, UTC)
    assert refused == ""
    state, refused = reserve(state, limits, "b", Amount(cpu_minutes=4), NOON, UTC)
    assert refused == "4 CPU minutes are needed, 3 are left of today's"
    state = settle(state, "a", Amount(cpu_minutes=2), NOON, UTC)
    state, refused = reserve(state, limits, "b", Amount(cpu_minutes=8), NOON, UTC)
    assert refused == ""
    assert quota.left(state, limits, NOON, UTC).cpu_minutes == 0
    assert quota.left(state, limits, NOON, UTC).bytes == float("inf")
    assert quota.left(state, limits, NOON + 24 * HOUR, UTC).cpu_minutes == 2, "b is open over midnight"
    state = settle(state, "b", Amount(cpu_minutes=8), NOON + 24 * HOUR, UTC)
    assert settle(state, "b", Amount(cpu_minutes=8), NOON + 24 * HOUR, UTC) == state
    assert quota.left(state, limits, NOON + 48 * HOUR, UTC).cpu_minutes == 10


def test_a_clock_set_back_gives_nothing_back() -> None:
    limits = Quota(bytes=100)
    state, _ = reserve(quota.State(), limits, "a", Amount(bytes=100), NOON, UTC)
    state = settle(state, "a", Amount(bytes=100), NOON, UTC)
    assert quota.left(state, limits, NOON - 24 * HOUR, UTC).bytes == 0
    assert quota.left(state, limits, NOON - 9000 * HOUR, UTC).bytes == 0
    _, refused = reserve(state, limits, "b", Amount(bytes=1), NOON - 9000 * HOUR, UTC)
    assert refused
    state, _ = reserve(state, limits, "c", Amount(), NOON - 9000 * HOUR, UTC)
    assert quota.left(state, limits, NOON - 9000 * HOUR + 25 * HOUR, UTC).bytes == 100, "not for years"


class World:
    """One node: windows, jobs that take what they may, kills, a clock that is set; what is on disk stays."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = random.Random(seed)
        begin = draw.randrange(24)
        self.rules = Rules(
            cron=draw.choice(["", "0 * * * *", "*/30 8-20 * * *"]),
            rows=draw.choice([0, 150]),
            blackout=draw.choice([(), (f"{begin:02}:00-{(begin + draw.randrange(1, 12)) % 24:02}:30",)]),
            cool_down=draw.choice([0.0, HOUR]),
            minutes=draw.choice([5.0, 30.0]),
            action=draw.choice(["tune", "ask", "both"]),
        )
        self.dark = Hours.of(self.rules.blackout)
        self.quota = Quota(
            cpu_minutes=draw.choice([None, 12.0, 60.0]),
            energy_wh=draw.choice([None, 1.0]),
            epsilon=draw.choice([None, 1.0]),
            bytes=draw.choice([None, 2500]),
        )
        self.disk = msgspec.msgpack.encode((State(), quota.State()))
        self.now = NOON + draw.randrange(86400)
        self.spent: dict[str, Amount] = {}
        self.begun = self.refused = 0

    def play(self, steps: int) -> None:
        draw = self.draw
        for _ in range(steps):
            self.now += draw.uniform(60, 2 * HOUR)
            if draw.random() < 0.02:
                self.now += draw.choice([-1, 1]) * draw.uniform(0, 30 * HOUR)
            state, held = msgspec.msgpack.decode(self.disk, type=tuple[State, quota.State])
            if state.open:  # it was killed at it: over, and it did not win
                state, start = ended(state, self.rules, self.now, UTC, won=False)
                held = settle(held, "job", held.open.get("job", Amount()), self.now, UTC)
            else:
                what = What(drift=draw.random() < 0.3, rows=draw.randrange(60))
                state, start = happened(state, self.rules, what, self.now, UTC)
            self.write(state, held)
            while start is not None:
                start = self.work(start)

    def write(self, state: State, held: quota.State) -> None:
        self.state, self.held = state, held
        self.disk = msgspec.msgpack.encode((state, held))

    def work(self, start: Start) -> Start | None:
        assert self.dark.free(datetime.fromtimestamp(self.now, UTC)) > 0, "begun in a blackout"
        minutes = (start.until - self.now) / 60
        need = (
            Amount(epsilon=0.4, bytes=1000)
            if start.action == "ask"
            else Amount(cpu_minutes=minutes, energy_wh=minutes / 20)
        )
        held, refused = reserve(self.held, self.quota, "job", need, self.now, UTC)
        self.write(self.state, held)
        took = Amount()
        if refused:
            self.refused += 1
        else:
            self.begun += 1
            share = self.draw.random()
            took = Amount(**{kind: share * getattr(need, kind) for kind in KINDS})
            day = max(held.day, datetime.fromtimestamp(self.now, UTC).date().isoformat())
            self.spent[day] = quota.total([self.spent.get(day, Amount()), took])
            self.now += share * minutes * 60
            late = datetime.fromtimestamp(self.now - 1e-3, UTC)
            assert share == 0 or self.dark.free(late) > 0, "at work in a blackout"
            if self.draw.random() < 0.1:  # killed: what is on disk says that it is at it
                return None
        held = settle(self.held, "job", took, self.now, UTC)
        state, more = ended(
            self.state, self.rules, self.now, UTC, won=not refused and self.draw.random() < 0.5
        )
        self.write(state, held)
        return more

    def within(self) -> bool:
        return all(
            getattr(spent, kind) <= most * (1 + 1e-6)
            for spent in self.spent.values()
            for kind in KINDS
            if (most := getattr(self.quota, kind)) is not None
        )


def test_ten_thousand_worlds_stay_within_their_quota_and_out_of_their_blackout() -> None:
    begun = refused = 0
    for seed in range(10_000):
        world = World(seed)
        world.play(12)
        assert world.within(), f"seed {seed}"
        begun, refused = begun + world.begun, refused + world.refused
    assert begun > 15_000
    assert refused > 3_000, "control: without a quota these would have begun"


def test_control_a_world_without_a_quota_goes_over_it() -> None:
    over = 0
    for seed in range(300):
        world = World(seed)
        limits, world.quota = world.quota, Quota()
        world.play(12)
        world.quota = limits
        over += not world.within()
    assert over > 30
