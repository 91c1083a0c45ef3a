"""Who holds all that the coordinator saw, and some of the members, tries to see one member's vector.

The adversary knows every message, every share that was opened, and everything its colluders keep. It takes
off each mask that it can compute. It fails as long as it is held to the protocol; where a rule is broken
that the protocol rests on (the controls), the same adversary succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import product
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from atoll.core.errors import PrivacyError, ProtocolError
from atoll.privacy import secure_sum as ss
from atoll.privacy.graph import threshold
from atoll.privacy.hazmat import masks, pairs, shamir
from atoll.privacy.hazmat.suite import INTL
from atoll.privacy.roster import Label
from tests.privacy.sitting import LABEL, Sitting, vectors

N, T = 7, threshold(7)
MAIL = dict[int, bytes]


class Adversary:
    """The coordinator with some members. `late`: who was declared lost and sent its vector nevertheless."""

    def __init__(self, sitting: Sitting, colluders: Collection[int] = ()) -> None:
        self.sitting = sitting
        self.colluders = set(colluders)
        self.seeds: dict[int, MAIL] = {}
        self.keys: dict[int, MAIL] = {}
        for note in sitting.opened.values():
            self.take(note)
        for c in colluders:
            self.corrupt(c)

    def take(self, note: bytes, of: int | None = None) -> None:
        """Shares that a member has opened; `of`: by the member, for notes that are not in the sitting."""
        opener = of if of is not None else next(c for c, n in self.sitting.opened.items() if n == note)
        seeds, keys = msgspec.msgpack.decode(note, type=tuple[MAIL, MAIL])
        place = self.sitting.roster.place(opener)
        for found, given in ((self.seeds, seeds), (self.keys, keys)):
            for v, piece in given.items():
                found.setdefault(v, {})[place] = piece

    def corrupt(self, c: int) -> None:
        """Everything a colluder can read: both shares of everybody who shared with it."""
        secret, roster = self.sitting.secrets[c], self.sitting.roster
        for v, letter in msgspec.msgpack.decode(self.sitting.mail[c], type=MAIL).items():
            text = INTL.unsealed(ss._letter_key(secret, roster, v, c), letter)
            place = roster.place(c)
            self.keys.setdefault(v, {})[place] = text[: shamir.SHARE]
            self.seeds.setdefault(v, {})[place] = text[shamir.SHARE :]

    def _joined(self, shares: MAIL, right: Callable[[bytes], bool], v: int) -> bytes | None:
        try:
            return ss._joined(self.sitting.roster, v, shares, right)
        except ProtocolError:
            return None

    def key(self, v: int) -> bytes | None:
        """A member's mask key, if it can be had."""
        if v in self.colluders:
            return self.sitting.secrets[v].mask
        public = self.sitting.roster.of[v].mask
        return self._joined(self.keys.get(v, {}), lambda key: pairs.public(key) == public, v)

    def seed(self, v: int) -> bytes | None:
        if v in self.colluders:
            return self.sitting.secrets[v].seed
        return self._joined(self.seeds.get(v, {}), lambda s: ss._is_seed(self.sitting.roster, v, s), v)

    def stripped(self, u: int, hidden: Any, *, own: bool = True) -> Any:
        """A masked vector without all masks that can be computed. `own`: whether it has one of its own."""
        roster, mine = self.sitting.roster, self.key(u)
        plus, minus = [], []
        seed = self.seed(u) if own else None
        if seed is not None:
            minus.append(ss._own_mask(roster, u, seed))
        for v in roster.holders(u):
            theirs = self.key(v)
            if v == u or (mine is None and theirs is None):
                continue
            key = ss._between(roster, u, mine, v) if mine is not None else ss._between(roster, v, theirs, u)  # type: ignore[arg-type]
            (minus if v > u else plus).append(key)
        return masks.masked(INTL, hidden, self.sitting.bits, plus, minus)

    def sees(self, u: int, hidden: Any | None = None) -> bool:
        """Whether it reads the member's vector."""
        hidden = self.sitting.hidden[u] if hidden is None else hidden
        return bool((self.stripped(u, hidden) == self.sitting.vectors[u]).all())


def sat(**lost: Collection[int]) -> Sitting:
    return Sitting(N, vectors(N, 8, 32), lost=dict(lost)).run()


@pytest.mark.parametrize("lost", [{}, {"mask": [5]}, {"mask": [5, 6]}, {"shares": [6], "open": [5]}])
def test_a_transcript_and_all_but_one_of_the_threshold_show_nobody(lost: dict[str, list[int]]) -> None:
    sitting = sat(**lost)
    adversary = Adversary(sitting, [c for c in range(2, N) if c in sitting.mail][: T - 1])
    honest = [u for u in sitting.hidden if u not in adversary.colluders]
    assert len(honest) >= 2, "of one honest member the sum itself shows all"
    assert not any(adversary.sees(u) for u in honest)


def test_who_takes_a_members_disk_later_does_not_read_its_vector() -> None:
    """Control: with what it held before it opened its shares."""
    sitting = sat()
    assert (sitting.disks[0].mask, sitting.disks[0].seed, sitting.disks[0].noise) == (b"", b"", b"")
    assert sitting.secrets[0].mask and ss.load(ss.dump({0: sitting.disks[0]}))[0] == sitting.disks[0]
    thief = Adversary(sitting)
    thief.corrupt(0)
    assert not thief.sees(0)
    thief.colluders = {0}
    assert thief.sees(0)


def test_what_is_left_of_an_opened_attempt_masks_and_signs_nothing_new() -> None:
    sitting = sat()
    left = sitting.disks[0]
    with pytest.raises(PrivacyError, match="masks one vector in an attempt"):
        ss.mask(left, sitting.mail[0], sitting.vectors[0], 32)
    assert ss.sign(left, sitting.list, sitting.sign[0])[1] == sitting.signatures[0]
    again, note = ss.reveal(left, sitting.list, ss.signatures_out(sitting.signatures), check=sitting.check)
    assert (again, note) == (left, sitting.opened[0]), "a restart repeats itself"


def test_control_one_more_colluder_sees_everybody() -> None:
    sitting = Sitting(N, vectors(N, 8, 32)).run("mask")
    assert all(Adversary(sitting, range(2, N)).sees(u) for u in range(2)), f"{T} of {N} hold all secrets"
    assert not any(Adversary(sitting, range(3, N)).sees(u) for u in range(3))


def test_what_the_sum_of_few_shows_it_shows() -> None:
    """Not hidden, and said so: everybody but one knows that one's vector."""
    sitting = sat()
    rest = sitting.added(sitting.vectors[1:])
    assert ((sitting.sum() - rest) & np.uint64(2**32 - 1) == sitting.vectors[0]).all()


def late(sitting: Sitting, u: int) -> Any:
    """The vector of a member that was declared lost, which comes after all."""
    _, hidden = ss.mask(sitting.secrets[u], sitting.mail[u], sitting.vectors[u], sitting.bits)
    return hidden


def test_a_vector_that_comes_late_stays_masked() -> None:
    sitting = sat(mask=[0])
    adversary = Adversary(sitting, [6])
    assert adversary.key(0) is not None, "its pairwise masks are known"
    assert not adversary.sees(0, late(sitting, 0))


def test_control_without_a_mask_of_its_own_a_late_vector_is_seen() -> None:
    sitting = sat(mask=[0])
    own = ss._own_mask(sitting.roster, 0, sitting.secrets[0].seed)
    bare = masks.masked(INTL, late(sitting, 0), 32, [], [own])
    assert (Adversary(sitting).stripped(0, bare, own=False) == sitting.vectors[0]).all()


def both_lists(colluders: int, n: int) -> tuple[int, int]:
    """How many signatures each of two lists gets that splits the honest members between them."""
    sitting = Sitting(n, vectors(n, 4, 32)).run("mask")
    bad = list(range(n - colluders, n))
    honest = [c for c in range(n) if c not in bad]
    halves = honest[: len(honest) // 2], honest[len(honest) // 2 :]
    lists = [ss.survivors_out(c for c in range(n) if c != 0), ss.survivors_out(range(n))]
    for half, survivors in zip(halves[::-1], lists, strict=True):
        for c in half:
            if c:
                sitting.secrets[c], _ = ss.sign(sitting.secrets[c], survivors, sitting.sign[c])
            with pytest.raises(PrivacyError):
                ss.sign(sitting.secrets[c], lists[1] if survivors == lists[0] else lists[0], sitting.sign[c])
    return len(halves[1]) + colluders, len(halves[0]) + colluders


@pytest.mark.parametrize("n", [7, 10, 13])
def test_of_two_lists_one_at_most_is_opened(n: int) -> None:
    """Bonawitz et al. 2017, §6: it takes 2t - n members who sign both, more than a third."""
    enough = 2 * threshold(n) - n
    assert enough > n / 3
    assert min(both_lists(enough - 1, n)) < threshold(n)


def split(colluders: int, n: int) -> bool:
    """Whether member 0 is read by a coordinator that tells half of the honest ones it was lost; colluders
    sign both lists.
    """
    sitting = Sitting(n, vectors(n, 4, 32)).run("mask")
    bad = range(n - colluders, n)
    adversary, cut = Adversary(sitting, bad), (n - colluders) // 2
    for half, gone in ((range(cut), ()), (range(cut, n - colluders), (0,))):
        survivors = ss.survivors_out(c for c in range(n) if c not in gone)
        signed = {c: ss.sign(sitting.secrets[c], survivors, sitting.sign[c]) for c in (*half, *bad)}
        proof = ss.signatures_out({c: signature for c, (_, signature) in signed.items()})
        for c in half:
            try:
                _, note = ss.reveal(signed[c][0], survivors, proof, check=sitting.check)
            except PrivacyError:
                continue
            adversary.take(note, of=c)
    return adversary.sees(0)


@pytest.mark.parametrize("n", [4, 7, 10, 13])
def test_with_a_lying_coordinator_it_takes_so_many_and_no_fewer(n: int) -> None:
    """docs/explanation/secure-sums.md: 2t - n of them read a member, one less nobody."""
    enough = 2 * threshold(n) - n
    assert enough < threshold(n)
    assert split(enough, n)
    assert not split(enough - 1, n)


def test_a_member_never_gives_both_secrets_of_another() -> None:
    sitting = Sitting(N, vectors(N, 8, 32)).run("sign")
    proof = ss.signatures_out(sitting.signatures)
    for c in range(N):
        secret, note = ss.reveal(sitting.secrets[c], sitting.list, proof, check=sitting.check)
        seeds, keys = msgspec.msgpack.decode(note, type=tuple[MAIL, MAIL])
        assert not set(seeds) & set(keys)
        for without in range(N):
            fewer = ss.survivors_out(v for v in range(N) if v != without)
            with pytest.raises(PrivacyError):
                ss.reveal(secret, fewer, proof, check=sitting.check)


def test_invented_members_are_no_members() -> None:
    """Six Sybils beside one real member: their keys are signed by nobody the member has pinned."""
    sitting = Sitting(1, vectors(1, 8, 32)).run("keys")
    strangers = [ss.begin(LABEL, c, sitting.draw, lambda text: (b"s" * 64, b"k" * 32)) for c in range(1, 7)]
    roster = [sitting.secrets[0].keys, *(s.keys for s in strangers)]
    with pytest.raises(ProtocolError, match="nobody knows"):
        ss.share(sitting.secrets[0], msgspec.msgpack.encode(roster), sitting.draw, check=sitting.check)
    sitting.secrets[0], _ = ss.share(sitting.secrets[0], msgspec.msgpack.encode(roster), sitting.draw)


def test_a_cohort_of_one_or_two_lost_lists_are_refused() -> None:
    alone = Sitting(1, vectors(1, 8, 32)).run("keys")
    with pytest.raises(PrivacyError, match="would show what each adds"):
        alone.shares()


def test_keys_of_an_earlier_round_are_not_taken_again() -> None:
    first = Sitting(4, vectors(4, 8, 32)).run()
    second = Sitting(4, vectors(4, 8, 32), label=Label("plant", "r1", 1, 0), seed=9).run("keys")
    roster = [second.secrets[0].keys, *(first.secrets[c].keys for c in range(1, 4))]
    with pytest.raises(ProtocolError, match="not the member's signature"):
        ss.share(second.secrets[0], msgspec.msgpack.encode(roster), second.draw, check=second.check)
    second.shares()
    second.mail = first.mail  # what was shared in the first round
    second.mask()
    second.agree()
    proof = ss.signatures_out(second.signatures)
    with pytest.raises(ProtocolError, match="was changed, or is not for this member"):
        ss.reveal(second.secrets[0], second.list, proof, check=second.check)


def test_control_a_mask_used_twice_shows_the_difference() -> None:
    """With the entropy of another run and its label as well, two vectors have the same masks."""
    x, y = vectors(3, 8, 32), vectors(3, 8, 32, seed=1)
    one, same, fresh = Sitting(3, x).run(), Sitting(3, y).run(), Sitting(3, y, seed=2).run()
    wanted = (x[0] - y[0]) & np.uint64(2**32 - 1)
    assert ((one.hidden[0] - same.hidden[0]) & np.uint64(2**32 - 1) == wanted).all()
    assert ((one.hidden[0] - fresh.hidden[0]) & np.uint64(2**32 - 1) != wanted).any()


def test_control_a_short_seed_is_found_by_trying() -> None:
    """Masks from seeds of 16 bits: a vector that is mostly zeros, as updates are, betrays the right one."""
    x = np.zeros(64, np.uint64)
    x[:3] = 5, 6, 7
    secret = 40_000

    def key(seed: int) -> bytes:
        return seed.to_bytes(32, "little")

    hidden = masks.masked(INTL, x, 32, [key(secret)])
    found = [s for s in range(1 << 16) if right(hidden, key(s))]
    assert found == [secret]


def right(hidden: Any, key: bytes) -> bool:
    return bool((masks.masked(INTL, hidden, 32, [], [key])[3:] == 0).all())


def test_two_uploads_of_one_vector_differ_uniformly() -> None:
    """Bytes of the difference against uniform, and of the uploads; 32 tests, corrected for their number."""
    x = vectors(3, 4096, 32)
    values = []
    for seed, c in product(range(8), range(2)):
        one = Sitting(3, x, seed=2 * seed).run("mask").hidden[c]
        other = Sitting(3, x, seed=2 * seed + 1).run("mask").hidden[c]
        for found in ((one - other) & np.uint64(2**32 - 1), one):
            counts = np.bincount(found.astype("<u4").view(np.uint8), minlength=256)
            values.append(stats.chisquare(counts).pvalue)
    assert len(values) == 32
    assert min(values) > 1e-3 / len(values)
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    counts = np.bincount((x[0] >> np.uint64(1)).astype("<u4").view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue < 1e-10, "the test sees one bit that is not uniform"
