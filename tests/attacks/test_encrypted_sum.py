"""Encrypted sums against a coordinator that asks for more than the sum, and a member that lies.

The control: with one member's help it reads everybody, as the label says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("tenseal")

import atoll as at
from atoll.core.errors import AtollError, PrivacyError, ProtocolError
from atoll.core.update import Layout, Leaf, Update
from atoll.learn.encrypted import LEAF, PAGE, EncryptedSum, Step, _Open, encrypted_sum
from atoll.learn.exchange import Seat
from atoll.privacy import encrypted_sum as es
from atoll.privacy import secure_sum as ss
from atoll.privacy.hazmat import bfv
from atoll.privacy.hazmat.suite import INTL
from atoll.privacy.roster import Label
from tests.worlds.test_secure_sums import JOB, SITES

SIZE = PAGE * 2046 + 100  # a page, and a ciphertext of another


class Sitting:
    """Five members that have encrypted a vector each, and a coordinator that holds the ciphertexts."""

    def __init__(self, members: int = 5, size: int = 100) -> None:
        self.how: EncryptedSum = encrypted_sum(members=8)
        rng = np.random.default_rng(7)
        self.seats = {c: Seat(rng.bytes) for c in range(members)}
        label = Label("", "", 0, 0)
        made = {c: ss.begin(label, c, rng.bytes) for c in self.seats}
        self.roster = ss.roster_of(label, {c: ss.keys_out(s.keys) for c, s in made.items()})
        text = ss.roster_out(self.roster)
        made = {c: es.joined(s, text) for c, s in made.items()}
        made[2], drawn = es.draw(made[2], lambda: bfv.fresh(self.how.ring))
        self.drawn, self.text = drawn, text
        self.x = rng.integers(0, 1 << 20, (members, size), dtype=np.uint64)
        self.sent = {}
        for c, secret in made.items():
            made[c] = es.take(secret, 2, drawn.box, drawn.letters[c])
            self.seats[c].keep(c, made[c])
            own = es.held(made[c])
            blocks = self.how.ring.blocks(size, self.how.tags)
            tagged = self.how.tagged(self.x[c], self.how.tags_of(own, c, blocks))
            self.sent[c] = bfv.encrypt(self.how.ring, own.s, tagged)

    def sum(self, clients: Sequence[int]) -> Any:
        return sum(self.sent[c] for c in clients)

    def ask(self, client: int, step: Step, params: Any = None) -> bytes:
        local: Any = SimpleNamespace(seat=self.seats[client], algorithm=at.fedavg(), waiting={})
        task: Any = SimpleNamespace(note=msgspec.msgpack.encode(step), clients=(client,), params=params)
        answer = self.how.reply(local, task)
        if answer.failed:
            raise PrivacyError(answer.failed[client])
        return bytes(answer.partial[client])

    def agree(self, client: int, there: Sequence[int]) -> bytes:
        return self.ask(client, Step("agree", 0, 0, 1.0, 5, msgspec.msgpack.encode(list(there))))

    def open(
        self, client: int, page: Any, there: Sequence[int], pair: Any, first: int = 0, by: Any = None
    ) -> es.Page:
        text = msgspec.msgpack.encode(
            _Open(list(there), tuple(pair), list(self.by if by is None else by), first)
        )
        update = Update(Layout((Leaf(LEAF, page.shape),)), page.reshape(-1), bits=self.how.bits)
        answer = self.ask(client, Step("open", 0, 0, 1.0, 5, text), update)
        return msgspec.msgpack.decode(answer, type=es.Page)

    @property
    def by(self) -> list[int]:
        return sorted(self.seats)

    def read(self, page: es.Page, pad: bytes, there: Any = None, blocks: int = 1) -> Any:
        """With the words of all, who agree to the list as they are asked here."""
        words = [self.agree(c, sorted(self.seats) if there is None else there) for c in self.by]
        return es.unpadded(INTL, page, pad, words, self.how.plain, blocks * self.how.room)


ALL = range(5)


def test_two_members_open_the_sum_and_read_the_same() -> None:
    sitting = Sitting()
    page = sitting.sum(ALL)
    a, b = (sitting.open(c, page, ALL, (0, 1)) for c in (0, 1))
    want = sitting.x.sum(axis=0)
    assert (sitting.read(a, b.pad)[:100] == want).all()
    assert (sitting.read(b, a.pad)[:100] == want).all()


def test_one_answer_says_nothing_without_the_other() -> None:
    sitting = Sitting()
    a = sitting.open(0, sitting.sum(ALL), ALL, (0, 1))
    assert (sitting.read(a, a.pad)[:100] != sitting.x.sum(axis=0)).mean() > 0.9


@pytest.mark.parametrize(
    "made",
    [
        lambda s: s.sent[3],  # one alone
        lambda s: s.sent[3] * np.uint64(5),  # as often as there are members
        lambda s: s.sum((0, 1, 2, 3)),  # one less than it says
        lambda s: s.sum(ALL) + s.sent[3],
        lambda s: s.sum(ALL) + np.uint64(2**40),  # not what was sent
        lambda s: np.zeros_like(s.sent[3]),
    ],
)
def test_what_is_not_the_sum_is_not_opened_and_nothing_after_it(made) -> None:
    sitting = Sitting()
    with pytest.raises(AtollError, match="not the sum"):
        sitting.open(0, made(sitting), ALL, (0, 1))
    with pytest.raises(AtollError, match=r"another page|no key"):
        sitting.open(0, sitting.sum(ALL), ALL, (0, 1))


def test_a_ciphertext_of_another_place_or_key_is_noticed() -> None:
    sitting, other = Sitting(size=3000), Sitting(size=3000)
    page = sitting.sum(ALL)
    with pytest.raises(AtollError, match="not the sum"):
        sitting.open(0, page[:, ::-1], ALL, (0, 1))
    page = page.copy()
    page[:] = page - sitting.sent[4] + other.sent[4]
    with pytest.raises(AtollError, match="not the sum"):
        sitting.open(1, page, ALL, (0, 1))


def test_a_sum_of_one_is_not_opened() -> None:
    sitting = Sitting()
    with pytest.raises(AtollError, match="at least 2"):
        sitting.open(3, sitting.sent[3], [3], (3, 3))
    with pytest.raises(AtollError, match="two different members"):
        sitting.open(3, sitting.sum((2, 3)), [2, 3], (3, 3))


def test_of_two_lists_one_at_most_is_opened() -> None:
    """The difference of two sums would be one client's update. Each list has two who open it."""
    sitting = Sitting()
    four = (0, 1, 2, 3)
    some = (0, 1, 2)  # more than half
    words = {c: sitting.agree(c, ALL) for c in some}
    words |= {c: sitting.agree(c, four) for c in (3, 4)}
    for client, there in ((0, four), (3, ALL)):
        with pytest.raises(AtollError, match="second list"):
            sitting.agree(client, there)
        with pytest.raises(AtollError, match="second list"):
            sitting.open(client, sitting.sum(there), there, (client, 4), by=some)
    a, b = (sitting.open(c, sitting.sum(ALL), ALL, (0, 1), by=some) for c in (0, 1))
    size = sitting.how.room
    opened = es.unpadded(INTL, a, b.pad, [words[c] for c in some], 32, size)
    assert (opened[:100] == sitting.x.sum(axis=0)).all()
    with pytest.raises(AtollError, match="more than half"):
        sitting.open(3, sitting.sum(four), four, (3, 4), by=(3, 4))
    c, d = (sitting.open(c, sitting.sum(four), four, (3, 4), by=(2, 3, 4)) for c in (3, 4))
    for page, pad in ((c, d.pad), (d, c.pad)):
        found = es.unpadded(INTL, page, pad, [words[i] for i in (2, 3, 4)], 32, size)
        assert (found[:100] != sitting.x[:4].sum(axis=0)).mean() > 0.9


def test_another_page_for_each_of_the_two_opens_nothing() -> None:
    sitting = Sitting(3, SIZE)
    page = sitting.sum(range(3))[:, PAGE:]
    moved = page.copy()
    moved[0, 0, 0] += np.uint64(1)  # within the error: the same numbers
    a = sitting.open(0, page, range(3), (0, 1), PAGE)
    b = sitting.open(1, moved, range(3), (0, 1), PAGE)
    assert (sitting.read(a, b.pad)[:100] != sitting.x.sum(axis=0)[-100:]).mean() > 0.9


def test_a_page_is_opened_once_and_the_same_question_gives_the_same_bytes() -> None:
    sitting = Sitting()
    page = sitting.sum(ALL)
    a = sitting.open(0, page, ALL, (0, 1))
    assert sitting.open(0, page, ALL, (0, 1)) == a
    with pytest.raises(AtollError, match="another page"):
        sitting.open(0, page + np.uint64(1), ALL, (0, 1))


def test_a_second_key_or_roster_is_refused() -> None:
    sitting, other = Sitting(), Sitting()
    secret = sitting.seats[3].secrets[3]
    with pytest.raises(PrivacyError, match="second key"):
        es.take(secret, 2, other.drawn.box, sitting.drawn.letters[3])
    with pytest.raises(PrivacyError, match="second roster"):
        es.joined(secret, ss.roster_out(Sitting(4).roster))
    drawer = sitting.seats[2].secrets[2]
    assert es.draw(drawer, lambda: b"another")[1] == sitting.drawn, "the same key again"


def test_letters_are_for_those_they_are_for() -> None:
    sitting = Sitting()
    secret = sitting.seats[3].secrets[3]
    for letter in (sitting.drawn.letters[4], sitting.drawn.letters[3][:-1], b""):
        with pytest.raises(ProtocolError, match="sealed message"):
            es.held(es.take(replace(secret, mail={}), 2, sitting.drawn.box, letter))


def test_control_one_member_with_the_server_reads_everybody() -> None:
    sitting = Sitting()
    own = es.held(sitting.seats[4].secrets[4])
    for c in ALL:
        read, _ = sitting.how.told(bfv.decrypt(sitting.how.ring, own.s, sitting.sent[c]))
        assert (read[:100] == sitting.x[c]).all()


def test_the_coordinator_alone_has_no_key_of_it() -> None:
    """Neither the box nor a letter holds what they seal, and no ciphertext is near its integers."""
    sitting = Sitting()
    own = es.held(sitting.seats[0].secrets[0])
    seen = b"".join([sitting.drawn.box, *sitting.drawn.letters.values(), sitting.text])
    assert own.k not in seen
    assert own.s[64:96] not in seen
    assert len({sitting.drawn.letters[c] for c in ALL}) == 5


@pytest.mark.parametrize("shape", [(2, PAGE + 1, bfv.N), (1, 1, bfv.N), (2, 1, 64), (2, 0, bfv.N), (bfv.N,)])
def test_pages_of_another_shape_are_refused_before_they_are_read(shape: tuple[int, ...]) -> None:
    sitting = Sitting()
    with pytest.raises(AtollError, match="page"):
        sitting.open(0, np.zeros(shape, np.uint64), ALL, (0, 1))


def test_a_member_that_lies_about_the_sum_is_noticed(monkeypatch) -> None:
    """One that is asked first gives another number; the round ends without a model, and says why."""
    honest = es.page

    def lying(own, me, opens, numbers, bits):
        return honest(own, me, opens, numbers + np.uint64(me == opens.pair[0]), bits)

    monkeypatch.setattr(es, "page", lying)
    with pytest.raises(at.AtollError, match="read different sums"):
        at.simulate(JOB.replace(exchange=encrypted_sum(members=10)), SITES, seed=3)


def test_who_cannot_open_is_replaced(monkeypatch) -> None:
    honest = es.page

    def failing(own, me, opens, numbers, bits):
        if me in (0, 1, 2):
            raise ProtocolError("no")
        return honest(own, me, opens, numbers, bits)

    job = JOB.replace(exchange=encrypted_sum(members=10))
    want = at.simulate(job, SITES, seed=3).params
    monkeypatch.setattr(es, "page", failing)
    assert at.simulate(job, SITES, seed=3).params == want


def test_models_of_many_pages_come_back_whole() -> None:
    sitting = Sitting(3, SIZE)
    page = sitting.sum(range(3))
    first, second = page[:, :PAGE], page[:, PAGE:]
    found = []
    for some, at_ in ((first, 0), (second, PAGE)):
        a, b = (sitting.open(c, some, range(3), (0, 1), at_) for c in (0, 1))
        found.append(sitting.read(a, b.pad, blocks=some.shape[1]))
    assert (np.concatenate(found)[:SIZE] == sitting.x.sum(axis=0)).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"plain": 40}, "from 8 to 32"),
        ({"largest": 0.0}, "largest"),
        ({"least": 1}, "sum of one"),
        ({"attempts": 0}, "attempts"),
        ({"members": 1}, "members"),
        ({"members": 1 << 20}, "do not fit"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(values, told: str) -> None:
    with pytest.raises(at.ConfigError, match=told):
        encrypted_sum(**values)


def test_more_clients_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(at.ConfigError, match="sums at most 9"):
        at.simulate(JOB.replace(exchange=encrypted_sum(members=9)), SITES, seed=3)


def test_noise_of_the_clients_is_in_the_sum() -> None:
    """The same noise as under masks, drawn from keys of another kind: as much, from two thirds of all."""
    bare = JOB.replace(rounds=1, sites=False, algorithm=at.fedavg(weigh="equal"))
    promise = {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0}
    found = []
    for exchange in (encrypted_sum(members=10), at.secure_sum()):
        job = bare.private(**promise, exchange=exchange)
        assert job.privacy.noise == "distributed"
        runs = [at.simulate(job, SITES, seed=s).params.buffer for s in range(40)]
        found.append(np.std(runs))
    assert found[0] == pytest.approx(found[1], rel=0.3)
    assert found[0] > 0


def test_the_cost_is_the_bytes_that_are_sent() -> None:
    how = encrypted_sum(members=16)
    sent, seconds = how.cost(1_000_000)
    assert sent == 2 * 489 * bfv.N * 6
    assert sent <= 16e6
    assert seconds > 0
