"""Who sits in which bucket nobody chooses: a coordinator that tries is refused, and could without lots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll as at
from atoll.core.edge import Task
from atoll.core.errors import PrivacyError, ProtocolError
from atoll.core.rng import Rng
from atoll.learn.local import Local
from atoll.learn.secure import SecureSum, Step
from atoll.privacy import lottery
from atoll.privacy.lottery import Coin, Lot
from atoll.privacy.roster import Label
from tests.exact.quadratic import Bowl, Quadratic
from tests.privacy.sitting import Members, entropy

LABEL = Label("reef", "r0001", 3, 0)
N = 8
BUCKETS = at.Buckets(4, at.median())


def coins(n: int = N, label: Label = LABEL, seed: int = 0) -> list[Coin]:
    draw = entropy(seed)
    return [lottery.begin(label, c, draw) for c in range(n)]


def everybody(drawn: list[Coin]) -> bytes:
    return lottery.lots_out({coin.lot.client: lottery.lot_out(coin) for coin in drawn})


def told(drawn: list[Coin]) -> tuple[list[Coin], dict[int, bytes]]:
    """All tell their coins."""
    lots = everybody(drawn)
    seen = [lottery.told(coin, lots, 2, None) for coin in drawn]
    return [coin for coin, _ in seen], {c: said for c, (_, said) in enumerate(seen)}


def bucket(drawn: list[Coin], said: dict[int, bytes], client: int) -> list[int]:
    """With whom a client sits."""
    key, members = lottery.drawn(drawn[client], lottery.coins_out(said))
    place = BUCKETS.dealt(members, key)
    return [c for c in members if place[c] == place[client]]


@given(st.integers(2, 12), st.integers(0, 1000), st.data())
def test_all_see_the_same_whoever_keeps_silent(n: int, seed: int, data: st.DataObject) -> None:
    drawn, said = told(coins(n, seed=seed))
    silent = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    heard = {c: coin for c, coin in said.items() if c not in silent}
    seen = {lottery.drawn(drawn[c], lottery.coins_out(heard)) for c in heard}
    assert len(seen) == 1
    assert next(iter(seen))[1] == tuple(sorted(heard))


def test_a_coin_binds_before_it_is_told_and_says_nothing() -> None:
    drawn, said = told(coins())
    lots = everybody(drawn)
    assert lottery.true(LABEL, lots, said) == said
    lie = {**said, 3: bytes(32)}
    assert 3 not in lottery.true(LABEL, lots, lie)
    with pytest.raises(ProtocolError, match="not bound to"):
        lottery.drawn(drawn[0], lottery.coins_out(lie))
    for part in said.values():
        assert part not in lots


def mates(choose: Callable[[list[Coin]], dict[int, bytes]], victim: int, liars: set[int], runs: int) -> int:
    """How often the victim sits among liars only, where the coordinator and they `choose` what is told."""
    among = 0
    for seed in range(runs):
        drawn = coins(seed=seed)
        honest, _ = told(drawn)
        said = choose(drawn)
        with_whom = bucket(honest, said, victim) if victim in said else []
        among += len(with_whom) > 1 and set(with_whom) - {victim} <= liars
    return among


def test_who_speaks_last_has_been_bound_before() -> None:
    """Two of eight sit in a bucket: with two liars the victim is with one of them in 2 of 7 drawings. If both
    may keep silent they try four outcomes, and the best of these is what they reach; not every one.
    """
    liars, victim = {6, 7}, 0

    def honest(drawn: list[Coin]) -> dict[int, bytes]:
        return told(drawn)[1]

    def silent(drawn: list[Coin]) -> dict[int, bytes]:
        seen, said = told(drawn)
        for keep in product([False, True], repeat=2):
            heard = {c: coin for c, coin in said.items() if c not in liars or keep[c - 6]}
            with_whom = bucket(seen, heard, victim)
            if len(with_whom) > 1 and set(with_whom) - {victim} <= liars:
                return heard
        return said

    fair, bent = (mates(choose, victim, liars, 300) for choose in (honest, silent))
    assert 300 * 2 / 7 - 40 < fair < 300 * 2 / 7 + 40
    assert fair < bent < 300 * 0.75


def test_control_who_draws_last_chooses() -> None:
    """Without lots the last to draw tries coins until the victim is where it wants it: always."""
    for seed in range(20):
        drawn = coins(seed=seed)
        for attempt in range(500):
            last = lottery.begin(LABEL, 7, entropy(10_000 + attempt))
            tried, said = told([*drawn[:7], last])
            if bucket(tried, said, 0) == [0, 7]:
                break
        else:
            raise AssertionError("500 coins were not enough")


def test_a_coin_is_told_for_one_list_of_lots() -> None:
    drawn = coins()
    first = everybody(drawn)
    mine, said = lottery.told(drawn[0], first, 2, None)
    assert lottery.told(mine, first, 2, None) == (mine, said)
    other = everybody([*drawn[:7], lottery.begin(LABEL, 7, entropy(99))])
    with pytest.raises(PrivacyError, match="second list of lots"):
        lottery.told(mine, other, 2, None)


def test_lists_that_are_none() -> None:
    drawn = coins()
    with pytest.raises(PrivacyError, match="own lot"):
        lottery.told(drawn[0], everybody([lottery.begin(LABEL, 0, entropy(5)), *drawn[1:]]), 2, None)
    with pytest.raises(PrivacyError, match="wants at least 9"):
        lottery.told(drawn[0], everybody(drawn), 9, None)
    lots = [coin.lot for coin in drawn]
    for wrong in ([*lots, lots[0]], lots[::-1], [lots[0], lots[0]]):
        with pytest.raises(ProtocolError, match="in order"):
            lottery.told(drawn[0], msgspec.msgpack.encode(wrong), 2, None)
    with pytest.raises(ProtocolError, match="not a list of lots"):
        lottery.told(drawn[0], b"rubbish", 2, None)
    with pytest.raises(ProtocolError, match="lot of another"):
        lottery.lots_out({0: lottery.lot_out(drawn[1])})


def test_invented_members_have_no_lot() -> None:
    members = Members()
    real = [lottery.begin(LABEL, c, entropy(c), members.signer(f"m{c}")) for c in range(N)]
    mine, _ = lottery.told(real[0], everybody(real), 2, members.check)
    assert mine.seen
    forged = replace(real[7], lot=Lot(7, real[7].lot.bound, real[6].lot.signature, real[6].lot.chain))
    with pytest.raises(ProtocolError):
        lottery.told(real[0], everybody([*real[:7], forged]), 2, members.check)
    twice = lottery.begin(LABEL, 7, entropy(7), members.signer("m6"))
    with pytest.raises(PrivacyError, match="more than one lot"):
        lottery.told(real[0], everybody([*real[:7], twice]), 2, members.check)


@pytest.mark.parametrize("other", [{"round": 4}, {"attempt": 1}, {"run": "r0002"}, {"crypto": "gm"}])
def test_a_lot_of_another_drawing_is_none(other: dict[str, object]) -> None:
    drawn, said = told(coins())
    label = replace(LABEL, **other)  # type: ignore[arg-type]
    assert lottery.true(label, everybody(drawn), said) == {}


class Client:
    """One client of a job in buckets, and a coordinator's questions to it."""

    def __init__(self) -> None:
        job = at.Job(Quadratic(size=3), at.robust(at.median(), buckets=4), exchange=at.secure_sum())
        self.local = Local(
            Quadratic(size=3), job.trained, {0: Bowl([1.0] * 3, [1.0] * 3, rows=3)}, {}, Rng.of(0)
        )
        self.local.seat.run = (LABEL.federation, LABEL.run)
        self.others = coins()[1:]

    def say(self, step: str, groups: object, coins: bytes = b"") -> tuple[bytes, str]:
        """Its note, and why not."""
        note = msgspec.msgpack.encode(Step(step, 3, 0, 1.0, 2, groups, coins))  # type: ignore[arg-type]
        task = Task(3, Rng.of(1), (0,), (-1,), at.Update.of({"w": np.zeros(3)}), want="note", note=note)
        answer = SecureSum().reply(self.local, task)
        return (answer.partial or {}).get(0, b""), answer.failed.get(0, "")

    def drawn(self) -> tuple[dict[int, int], bytes]:
        """Everybody's place, once it has told its coin."""
        everyone = list(range(N))
        mine, _ = self.say("lot", {0: (everyone, b"")})
        lots = lottery.lots_out({0: mine, **{c.lot.client: lottery.lot_out(c) for c in self.others}})
        said, why = self.say("coin", {0: (everyone, lots)})
        assert not why
        heard = lottery.coins_out({0: said, **{c.lot.client: c.coin for c in self.others}})
        key, members = lottery.number(LABEL, lots, heard)
        return BUCKETS.dealt(members, key), heard


def sits(place: dict[int, int], group: int) -> dict[int, tuple[list[int], bytes]]:
    return {group: (sorted(c for c in place if place[c] == group), b"")}


def test_a_client_sits_where_it_was_drawn_to_and_nowhere_else() -> None:
    client = Client()
    place, heard = client.drawn()
    right = sits(place, place[0])
    other = (place[0] + 1) % 4
    (mate,) = set(right[place[0]][0]) - {0}
    stranger = next(c for c in range(1, N) if c != mate)
    for wrong in (
        {other: right[place[0]]},  # another bucket
        {place[0]: (sorted([0, stranger]), b"")},  # another mate
        {place[0]: (sorted([0, mate, stranger]), b"")},  # one more
        {place[0]: ([0], b"")},  # alone
    ):
        note, why = client.say("keys", wrong, heard)
        assert not note and "not the one that its members have drawn" in why
    assert client.say("keys", right, heard)[0]
    assert client.say("keys", right, b"")[0], "its keys are its keys, however often it is asked"


def test_without_a_drawing_there_is_no_bucket() -> None:
    client = Client()
    assert "has drawn no lot" in client.say("keys", {0: ([0, 5], b"")})[1]
    client.say("lot", {0: (list(range(N)), b"")})
    assert "before this member has told its coin" in client.say("keys", {0: ([0, 5], b"")}, b"")[1]
    place, heard = client.drawn()
    without = lottery.coins_out({c.lot.client: c.coin for c in client.others})
    assert "without this member" in client.say("keys", sits(place, place[0]), without)[1]
    assert client.say("keys", sits(place, place[0]), heard)[0]


def test_places_are_even() -> None:
    """Every pair is as likely as any other: chi-square of 28 pairs in 700 drawings."""
    pairs: Counter[tuple[int, ...]] = Counter()
    for seed in range(700):
        drawn, said = told(coins(seed=seed))
        place = BUCKETS.dealt(range(N), lottery.drawn(drawn[0], lottery.coins_out(said))[0])
        pairs.update(tuple(c for c in range(N) if place[c] == g) for g in range(4))
    expected = 700 * 4 / 28
    assert len(pairs) == 28
    assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 60  # p = 0.0003
