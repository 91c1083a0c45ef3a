"""Secure sums: exact whoever drops out, and no step for whoever breaks their order."""

import contextlib
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

import atoll as at
from atoll.core.errors import AtollError, ConfigError, MisuseError, PrivacyError, ProtocolError
from atoll.privacy import secure_sum as ss
from atoll.privacy.graph import FULL, degree, threshold
from atoll.privacy.hazmat import masks, pairs, shamir
from atoll.privacy.hazmat.suite import SUITES, Suite
from atoll.privacy.roster import Label, Roster
from tests.privacy.sitting import STEPS, Sitting, entropy, vectors

MAIL = dict[int, bytes]

# -- the raw parts ---------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.integers(0, 6), st.randoms())
def test_any_threshold_of_shares_gives_the_secret_and_fewer_another(secret, t, more, rng) -> None:
    places = rng.sample(range(1, 1000), t + more)
    shares = shamir.split(secret, t, places, entropy(rng.randrange(1 << 32)))
    chosen = rng.sample(places, t)
    assert shamir.join({x: shares[x] for x in chosen}) == secret
    if t > 1:
        with contextlib.suppress(ProtocolError):  # it may be no secret at all
            assert shamir.join({x: shares[x] for x in chosen[1:]}) != secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """For any other secret there is a polynomial through the same t - 1 shares."""
    secret = bytes(range(32))
    shares = shamir.split(secret, 3, [1, 2, 3], entropy(1))
    for other in (bytes(32), b"\xff" * 32, bytes(31) + b"\x07"):
        q = {0: int.from_bytes(other, "big"), **{x: int.from_bytes(shares[x], "big") for x in (1, 2)}}
        value = sum(y * w for y, w in zip(q.values(), lagrange(list(q), 3), strict=True)) % shamir.PRIME
        faked = {1: shares[1], 2: shares[2], 3: value.to_bytes(33, "big")}
        assert shamir.join(faked) == other


def lagrange(places: list[int], at: int) -> list[int]:
    p, weights = shamir.PRIME, []
    for x in places:
        others = [o for o in places if o != x]
        above = np.prod([at - o for o in others], dtype=object)
        below = np.prod([x - o for o in others], dtype=object)
        weights.append(int(above) * pow(int(below), -1, p) % p)
    return weights


def test_shares_that_cannot_be() -> None:
    with pytest.raises(MisuseError, match="has 32 bytes"):
        shamir.split(b"short", 2, [1, 2], entropy(0))
    for threshold_, places in ((3, [1, 2]), (0, [1, 2]), (2, [1, 1]), (1, [0])):
        with pytest.raises(MisuseError, match="different places"):
            shamir.split(bytes(32), threshold_, places, entropy(0))
    with pytest.raises(ProtocolError, match="below the prime"):
        shamir.join({1: b"\xff" * 33})
    with pytest.raises(ProtocolError, match="33 bytes"):
        shamir.join({1: bytes(32)})


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
@pytest.mark.parametrize("bits", [8, 12, 16, 24, 32, 40, 64])
@given(st.integers(0, 1 << 32), st.integers(1, 70_000))
@settings(max_examples=5, deadline=None)
def test_masks_come_off_again(suite: Suite, bits: int, seed: int, size: int) -> None:
    x = vectors(1, size, bits, seed)[0]
    one, two = entropy(seed)(32), entropy(seed + 1)(32)
    hidden = masks.masked(suite, x, bits, [one], [two])
    assert hidden.max() < 1 << bits
    assert (masks.masked(suite, hidden, bits, [two], [one]) == x).all()
    if size > 100:
        assert (hidden != x).mean() > 0.9


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_points_of_small_order_are_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError, match="no point"):
        pairs.agreed(bytes(31) + b"\x40", point)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_a_purpose_is_told_apart_however_it_is_cut(suite: Suite) -> None:
    secret = bytes(32)
    keys = [suite.derived(secret, *purpose) for purpose in (("ab", "c"), ("a", "bc"), ("abc",), ("ab", 99))]
    assert len(set(keys)) == len(keys)
    assert suite.unsealed(keys[0], suite.sealed(keys[0], b"text")) == b"text"
    with pytest.raises(ProtocolError, match="was changed"):
        suite.unsealed(keys[1], suite.sealed(keys[0], b"text"))


# -- who shares with whom --------------------------------------------------------------------


def test_up_to_so_many_everybody_shares_with_everybody() -> None:
    assert [degree(n) for n in (2, 50, FULL)] == [1, 49, FULL - 1]
    grown = [degree(n) for n in (FULL + 1, 500, 1000, 5000)]
    assert grown[-1] < 700
    assert all(a <= b for a, b in pairwise(grown))
    assert threshold(3) == 3
    assert threshold(50) == 34


def test_the_graph_is_made_for_the_shares_that_are_stated() -> None:
    for n in (200, 1000):
        fewer, usual, more = degree(n, 0.02, 0.05), degree(n), degree(n, 0.05, 0.27)
        assert fewer < usual < more <= n - 1
        bad, gone, t = int(0.05 * n), int(0.27 * n), threshold(more + 1)
        assert n * hypergeom(n - 1, bad, more).sf(t - 1) < 2.0**-40
        assert n * hypergeom(n - 1, bad + gone, more).sf(more - 1) < 2.0**-40
        assert n * hypergeom(n - 1, gone, more).sf(more + 1 - t) < 2.0**-30
    for wrong in ((0.2, 0.2), (-0.1, 0.1), (0.1, float("nan"))):
        with pytest.raises(ConfigError, match="together less than a third"):
            degree(50, *wrong)
        with pytest.raises(ConfigError, match="together less than a third"):
            at.secure_sum(corrupt=wrong[0], lost=wrong[1])


def test_a_sum_with_another_graph_is_exact_and_its_members_sign_the_graph() -> None:
    label = Label("plant", "r1", 0, 0, corrupt=0.02, lost=0.28)
    x, gone = vectors(150, 8, 32), range(42)
    one = Sitting(150, x, label=label, signed=False, lost={"mask": gone}).run()
    assert (one.sum() == x[42:].sum(0) & np.uint64(2**32 - 1)).all()
    assert len(one.roster.holders(0)) == degree(150, 0.02, 0.28) + 1
    usual = Label("plant", "r1", 0, 0)
    assert usual.parts == Label("plant", "r1", 0, 0, 0, "intl", 0.1, 0.2).parts != label.parts
    assert ss.load(ss.dump(one.secrets)) == one.secrets


def test_neighbours_are_mutual_and_nobody_chooses_them() -> None:
    one = Sitting(200, vectors(200, 1, 32), signed=False).run("keys").roster
    for c in one.clients:
        assert c in one.holders(c)
        assert all(c in one.holders(v) for v in one.holders(c))
        assert len(one.holders(c)) == degree(200) + 1
    other = Sitting(200, vectors(200, 1, 32), signed=False, seed=1).run("keys").roster
    assert one.holders(0) != other.holders(0)


# -- the sum ---------------------------------------------------------------------------------


@given(
    n=st.integers(2, 9),
    bits=st.sampled_from([8, 16, 20, 32, 64]),
    size=st.integers(1, 40),
    seed=st.integers(0, 1 << 32),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_sum_is_exact_whoever_drops_out_at_whichever_step(n, bits, size, seed, data) -> None:
    gone = data.draw(st.lists(st.integers(0, n - 1), max_size=n - threshold(n), unique=True))
    lost: dict[str, list[int]] = {}
    for client in gone:
        lost.setdefault(data.draw(st.sampled_from(STEPS)), []).append(client)
    x = vectors(n, size, bits, seed)
    sitting = Sitting(n, x, bits, seed, lost=lost).run()
    assert (sitting.sum() == sitting.added(x[sorted(sitting.hidden)])).all()


def test_a_sum_over_a_graph_is_exact_as_well() -> None:
    x = vectors(150, 10, 16)
    lost = {"shares": range(3), "mask": range(3, 15), "sign": range(15, 18), "open": range(18, 25)}
    sitting = Sitting(150, x, 16, lost=lost, signed=False).run()
    assert (sitting.sum() == sitting.added(x[15:])).all()


def test_false_shares_are_left_out_and_too_many_are_noticed() -> None:
    x = vectors(6, 5, 32)
    sitting = Sitting(6, x, lost={"mask": [0]}).run()
    good = dict(sitting.opened)

    def spoiled(client: int) -> bytes:
        seeds, keys = msgspec.msgpack.decode(good[client], type=tuple[MAIL, MAIL])
        return msgspec.msgpack.encode(({v: bytes(33) for v in seeds}, dict.fromkeys(keys, b"\1" * 33)))

    sitting.opened = {**good, 3: spoiled(3)}
    with pytest.raises(ProtocolError, match="some are false"):
        sitting.sum()  # 5 shares came, 5 are needed
    sitting = Sitting(7, vectors(7, 5, 32)).run()
    good = dict(sitting.opened)
    sitting.opened = {**good, 3: spoiled(3)}
    assert (sitting.sum() == sitting.added(sitting.vectors)).all()
    sitting.opened = {c: good[c] for c in range(4)}
    with pytest.raises(ProtocolError, match="4 came and 5 are needed"):
        sitting.sum()
    sitting.opened = {**good, 1: b"rubbish"}
    with pytest.raises(ProtocolError, match="opened shares"):
        sitting.sum()


def test_what_a_member_keeps_comes_back_from_its_disk() -> None:
    sitting = Sitting(3, vectors(3, 4, 32)).run()
    assert ss.load(ss.dump(sitting.secrets)) == sitting.secrets
    with pytest.raises(ProtocolError, match="what a member keeps"):
        ss.load(b"\x93")


# -- the order of steps ----------------------------------------------------------------------


def test_the_same_question_gets_the_same_answer_and_another_none() -> None:
    sitting = Sitting(5, vectors(5, 4, 32)).run()
    secret, x = sitting.secrets[1], sitting.vectors[1]
    again, hidden = ss.mask(secret, sitting.mail[1], x, 32)
    assert again == secret
    assert (hidden == sitting.hidden[1]).all()
    with pytest.raises(PrivacyError, match="masks one vector"):
        ss.mask(secret, sitting.mail[1], x + np.uint64(1), 32)
    with pytest.raises(PrivacyError, match="masks one vector"):
        ss.mask(secret, sitting.mail[1], x, 16)
    mail = msgspec.msgpack.decode(sitting.mail[1], type=MAIL)
    fewer = msgspec.msgpack.encode({c: letter for c, letter in mail.items() if c})
    with pytest.raises(PrivacyError, match="masks one vector"):
        ss.mask(secret, fewer, x, 32)
    with pytest.raises(PrivacyError, match="second list"):
        ss.sign(secret, ss.survivors_out(range(1, 5)), sitting.sign[1])
    with pytest.raises(PrivacyError, match="not the one that this member has signed"):
        ss.reveal(secret, ss.survivors_out(range(1, 5)), ss.signatures_out(sitting.signatures))
    assert ss.sign(secret, sitting.list, sitting.sign[1])[1] != b""


def test_nothing_is_opened_for_too_few_signatures_or_false_ones() -> None:
    sitting = Sitting(5, vectors(5, 4, 32)).run("sign")
    few = dict(list(sitting.signatures.items())[: threshold(5) - 1])
    cases = {
        "few": few,
        "of strangers": {**few, 77: b"x"},
        "one for another": {**few, 4: sitting.signatures[0]},
        "false": dict.fromkeys(range(5), b"x" * 64),
    }
    for name, signatures in cases.items():
        with pytest.raises(PrivacyError, match="4 must before it opens"):
            ss.reveal(sitting.secrets[0], sitting.list, ss.signatures_out(signatures), check=sitting.check)
        assert name
    with pytest.raises(ProtocolError, match="not signatures"):
        ss.reveal(sitting.secrets[0], sitting.list, b"\xff", check=sitting.check)


def test_rosters_that_a_member_does_not_sit_in() -> None:
    sitting = Sitting(4, vectors(4, 4, 32)).run("keys")
    me = sitting.secrets[0]
    members = list(sitting.roster.members)
    strange = ss.begin(sitting.label, 4, sitting.draw, Sitting(9, vectors(9, 1, 8)).members.signer("who"))
    double = ss.begin(sitting.label, 4, sitting.draw, sitting.sign[1])
    forged = msgspec.structs.replace(members[1], mask=bytes(32))
    mine = msgspec.structs.replace(members[0], share=bytes(32))
    short = msgspec.structs.replace(members[3], own=b"")
    twin = msgspec.structs.replace(members[3], mask=members[2].mask)
    cases = [
        ([members[0]], PrivacyError, "at least 2"),
        (members[1:], PrivacyError, "own keys"),
        ([mine, *members[1:]], PrivacyError, "own keys"),
        ([*members, members[0]], ProtocolError, "in order"),
        ([*members, strange.keys], ProtocolError, "nobody knows"),
        ([*members, double.keys], PrivacyError, "more than once"),
        ([members[0], forged, *members[2:]], ProtocolError, "not the member's signature"),
        ([*members[:3], short], ProtocolError, "32 bytes each"),
        ([*members[:3], twin], ProtocolError, "same key"),
    ]
    for roster, error, why in cases:
        with pytest.raises(error, match=why):
            ss.share(me, msgspec.msgpack.encode(roster), sitting.draw, check=sitting.check)
    with pytest.raises(PrivacyError, match="at least 9"):
        ss.share(me, ss.roster_out(sitting.roster), sitting.draw, check=sitting.check, least=9)
    with pytest.raises(ProtocolError, match="not a roster"):
        ss.share(me, b"\xc1", sitting.draw)
    after, _ = ss.share(me, ss.roster_out(sitting.roster), sitting.draw, check=sitting.check)
    with pytest.raises(PrivacyError, match="second roster"):
        ss.share(after, msgspec.msgpack.encode(members[:3]), sitting.draw, check=sitting.check)


def test_steps_out_of_order() -> None:
    sitting = Sitting(4, vectors(4, 4, 32)).run("keys")
    me = sitting.secrets[0]
    with pytest.raises(ProtocolError, match="has not begun"):
        ss.mask(me, b"\x80", sitting.vectors[0], 32)
    sitting.shares()
    with pytest.raises(PrivacyError, match="none of its business"):
        ss.sign(sitting.secrets[0], ss.survivors_out(range(4)), sitting.sign[0])
    sitting.mask()
    with pytest.raises(PrivacyError, match="not the one that this member has signed"):
        ss.reveal(sitting.secrets[0], sitting.list, ss.signatures_out({}))
    with pytest.raises(PrivacyError, match="none of its business"):
        ss.sign(sitting.secrets[0], ss.survivors_out([1, 2, 3]), sitting.sign[0])
    with pytest.raises(PrivacyError, match="too few"):
        ss.sign(sitting.secrets[0], ss.survivors_out([0, 1]), sitting.sign[0])
    with pytest.raises(ProtocolError, match="not in the roster"):
        ss.sign(sitting.secrets[0], ss.survivors_out(range(9)), sitting.sign[0])


def test_mail_that_is_not_for_this_member() -> None:
    sitting = Sitting(4, vectors(4, 4, 32)).run("shares")
    mail = msgspec.msgpack.decode(sitting.mail[0], type=MAIL)
    for changed, error, why in (
        ({c: m for c, m in mail.items() if c}, ProtocolError, "or not its own"),
        ({**mail, 9: b"x"}, ProtocolError, "does not share with"),
        ({0: mail[0]}, PrivacyError, "1 members shared"),
    ):
        with pytest.raises(error, match=why):
            ss.mask(sitting.secrets[0], msgspec.msgpack.encode(changed), sitting.vectors[0], 32)
    sitting.mail[0] = msgspec.msgpack.encode({**mail, 2: mail[1]})
    sitting.mask()
    sitting.agree()
    with pytest.raises(ProtocolError, match="was changed, or is not for this member"):
        ss.reveal(
            sitting.secrets[0], sitting.list, ss.signatures_out(sitting.signatures), check=sitting.check
        )


def test_a_coordinator_is_told_who_speaks_for_another() -> None:
    sitting = Sitting(2, vectors(2, 4, 32)).run("keys")
    notes = {1: ss.keys_out(sitting.secrets[0].keys)}
    with pytest.raises(ProtocolError, match="client 1 sent the keys of client 0"):
        ss.roster_of(sitting.label, notes)
    with pytest.raises(AtollError, match="not a member's keys"):
        ss.keys_in(b"\x00")


def test_nothing_made_for_one_attempt_is_good_in_another() -> None:
    x = vectors(4, 64, 32)
    one = Sitting(4, x).run()
    for values in (("plant", "r1", 0, 1), ("plant", "r1", 1, 0), ("plant", "r2", 0, 0), ("bank", "r1", 0, 0)):
        label = Label(*values)
        other = Sitting(4, x, label=label).run()  # the same entropy: only the label differs
        assert all((one.hidden[c] != other.hidden[c]).any() for c in range(4))
        moved = Roster(label, one.roster.members)
        assert moved.digest != one.roster.digest
        fresh = Sitting(4, x, label=label, seed=7).run("keys")
        mixed = [fresh.roster.members[0], *one.roster.members[1:]]
        with pytest.raises(ProtocolError, match="not the member's signature"):
            ss.share(fresh.secrets[0], msgspec.msgpack.encode(mixed), one.draw, check=one.check)
