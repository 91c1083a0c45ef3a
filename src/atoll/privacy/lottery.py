"""A number that several members draw together, and that none of them could choose: who sits in which bucket.

Blum 1983, "Coin flipping by telephone: a protocol for solving impossible problems", with many members and a
coordinator that passes everything on:

    lot      each member draws a coin, and signs what binds it to that coin
    coin     shown everybody's lots, it tells its coin; for one list of lots only
    number   of all lots and of the coins that were told

Whoever speaks last has been bound before it heard the others. It can keep its coin to itself, and is left out
then: c members who help each other choose among 2^c outcomes at most, and nobody else chooses at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgspec

from ..core.errors import PrivacyError, ProtocolError
from ..core.rng import Rng
from .hazmat.suite import KEY
from .roster import Label

Check = Callable[[Any, bytes], str]


class Lot(msgspec.Struct, frozen=True, array_like=True):
    """What binds a member to its coin, its signature on that (empty where nobody signs) and its chain."""

    client: int
    bound: bytes
    signature: bytes = b""
    chain: bytes = b""


@dataclass(frozen=True)
class Coin:
    """What a member keeps of one drawing. `seen`: the lots for which it told its coin."""

    label: Label
    lot: Lot
    coin: bytes = field(repr=False)
    seen: bytes = b""


def begin(
    label: Label,
    client: int,
    draw: Callable[[int], bytes],
    sign: Callable[[bytes], tuple[bytes, bytes]] | None = None,
) -> Coin:
    """A fresh coin; its `lot` goes to the coordinator. `draw`, `sign`: as in secure_sum.begin."""
    coin = draw(KEY)
    bound = _bound(label, client, coin)
    signature, chain = (b"", b"") if sign is None else sign(_said(label, client, bound))
    return Coin(label, Lot(client, bound, signature, chain), coin)


def lots_out(notes: Mapping[int, bytes]) -> bytes:
    """Everybody's lots, by their notes, in the order of clients. Raises ProtocolError for what is no lot."""
    lots = [_decoded(notes[client], Lot, "a lot") for client in sorted(notes)]
    if [lot.client for lot in lots] != sorted(notes):
        raise ProtocolError("a client sent the lot of another")
    return msgspec.msgpack.encode(lots)


def lot_out(coin: Coin) -> bytes:
    """A member's lot as its note."""
    return msgspec.msgpack.encode(coin.lot)


def told(coin: Coin, everybody: bytes, least: int, check: Check | None) -> tuple[Coin, bytes]:
    """This member's coin, once the lots are found to be of at least `least` different members, its own among
    them, who have signed them (`check`).

    Raises PrivacyError for a second list of lots, or too few; ProtocolError for what is none.
    """
    lots = _lots(everybody)
    if coin.seen and coin.seen != everybody:
        raise PrivacyError("a second list of lots came for one drawing: a coin is told for one only")
    if lots.get(coin.lot.client) != coin.lot:
        raise PrivacyError("a drawing does not have this member's own lot")
    if len(lots) < least:
        raise PrivacyError(f"a drawing of {len(lots)} members: this one wants at least {least}")
    if check is not None:
        names = [check(lot, _said(coin.label, lot.client, lot.bound)) for lot in lots.values()]
        if len(set(names)) < len(names):
            raise PrivacyError("a member has more than one lot in a drawing")
    return replace(coin, seen=everybody), coin.coin


def true(label: Label, everybody: bytes, coins: Mapping[int, bytes]) -> dict[int, bytes]:
    """The coins that their members were bound to."""
    lots = _lots(everybody)
    return {
        client: coin
        for client, coin in sorted(coins.items())
        if client in lots and lots[client].bound == _bound(label, client, coin)
    }


def coins_out(coins: Mapping[int, bytes]) -> bytes:
    """The coins that were told, by client, for every member to see."""
    return msgspec.msgpack.encode(sorted(coins.items()))


@lru_cache(maxsize=4)
def number(label: Label, everybody: bytes, coins: bytes) -> tuple[Rng, tuple[int, ...]]:
    """What was drawn, as a stream, and by whom. Raises ProtocolError for a coin that nobody was bound to."""
    found = dict(_decoded(coins, list[tuple[int, bytes]], "a list of coins"))
    if true(label, everybody, found) != found:
        raise ProtocolError("a coin was told that its member was not bound to")
    text = msgspec.msgpack.encode((label.parts, "drawn", everybody, coins))
    return Rng(int.from_bytes(label.suite.digest(text)[:8], "little")), tuple(sorted(found))


def drawn(coin: Coin, coins: bytes) -> tuple[Rng, tuple[int, ...]]:
    """`number`, as a member sees it that has told its coin.

    Raises PrivacyError where it has not, or what was drawn is without its coin.
    """
    if not coin.seen:
        raise PrivacyError("a drawing is over before this member has told its coin")
    rng, members = number(coin.label, coin.seen, coins)
    if coin.lot.client not in members:
        raise PrivacyError("what was drawn is without this member's coin")
    return rng, members


def _bound(label: Label, client: int, coin: bytes) -> bytes:
    return label.suite.committed(coin, *label.parts, "coin", client)


def _said(label: Label, client: int, bound: bytes) -> bytes:
    return msgspec.msgpack.encode((label.parts, "lot", client, bound))


def _lots(text: bytes) -> dict[int, Lot]:
    found = _decoded(text, list[Lot], "a list of lots")
    lots = {lot.client: lot for lot in found}
    if list(lots) != sorted(lots) or len(lots) < len(found):
        raise ProtocolError("the lots of a drawing are in order, one of each member")
    return lots


def _decoded(text: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.msgpack.decode(text, type=kind)
    except msgspec.DecodeError:
        raise ProtocolError(f"this is not {what}") from None
