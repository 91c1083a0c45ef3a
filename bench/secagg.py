"""What a secure sum costs: `python -m bench secagg [--numbers N] [--json FILE]`.

All roles in one process, in turns with the plain sum of the same updates: 1 M numbers, a tenth of the
members lost after they shared their secrets. CPU seconds, medians over the members; the sum is compared
bit for bit with that of the bare integers, and with the plain sum of the real numbers, or the program fails.
Then whether the time that a client takes to hide an update tells what is in it, and the encrypted sum of ten
members (BFV), where TenSEAL is installed, compared with the same integers.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from atoll.core.aggregate import Reply, Sum, points
from atoll.core.edge import Answer
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn.encrypted import EncryptedSum, Ints, encrypted_sum
from atoll.learn.integers import Scale
from atoll.privacy import graph, roster
from atoll.privacy import secure_sum as ss
from atoll.privacy.hazmat import bfv
from atoll.privacy.roster import Label
from atoll.wire import body
from atoll.wire.codec import encode

from .rows import Disagreement
from .wire import Figure

T = TypeVar("T")
ROOMS = (16, 256)  # members that an encrypted sum has room for
CASES = ((10, None, 10.0, None), (50, None, 45.0, 0.25), (50, 12, 15.0, None))


class Clock:
    """CPU seconds of calls, by name."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    def __call__(self, name: str, call: Callable[[], T]) -> T:
        began = time.process_time()
        made = call()
        self.seen.setdefault(name, []).append(time.process_time() - began)
        return made

    def __getitem__(self, name: str) -> float:
        return median(self.seen[name])


def attempt(n: int, numbers: int, degree: int | None) -> tuple[Clock, dict[str, int]]:
    """One secure sum and one plain sum of the same updates. Raises Disagreement."""
    clock, rng = Clock(), np.random.default_rng(n)
    updates = [Update.of({"w": rng.normal(0, 0.01, numbers).astype(np.float32)}) for _ in range(n)]
    lost = set(range(0, n, 10))
    scale, layout = Scale(32, 16.0, n, 1.0), updates[0].layout
    with mock.patch.object(roster, "degree", (lambda *_: degree) if degree else graph.degree):
        return _both(clock, updates, lost, scale, layout)


def _both(
    clock: Clock, updates: list[Update], lost: set[int], scale: Scale, layout: Any
) -> tuple[Clock, dict[str, int]]:
    n, draw = len(updates), secrets.token_bytes
    label = Label("bench", "run", 0, 0)
    plain_points = points(updates[0], n, 1.0)
    plain = Sum().at(plain_points, range(n), Rng.of(0))
    kept = {c: clock("keys", lambda c=c: ss.begin(label, c, draw)) for c in range(n)}  # type: ignore[misc]
    sitting = ss.roster_of(label, {c: ss.keys_out(s.keys) for c, s in kept.items()})
    text, mail = ss.roster_out(sitting), {}
    for c in range(n):
        kept[c], mail[c] = clock("shares", lambda c=c: ss.share(kept[c], text, draw))  # type: ignore[misc]
    routed = ss.routed(mail)
    size = scale.layout(layout).size
    hidden, bare, partial = np.zeros(size, np.uint64), np.zeros(size, np.uint64), None
    sizes = {}
    for c in [c for c in range(n) if c not in lost]:
        whole = clock("integers", lambda c=c: scale.out(updates[c], 1.0, Rng.of(c)))  # type: ignore[misc]
        kept[c], masked = clock("mask", lambda c=c, w=whole: ss.mask(kept[c], routed[c], w, scale.bits))  # type: ignore[misc]
        reply = Reply(Update(scale.layout(layout), masked, bits=scale.bits))
        sizes["secure"] = sent(c, reply)
        sizes["plain"] = sent(c, Reply(updates[c]))
        hidden += masked
        bare += whole
        lifted = clock("plain", lambda c=c: plain.lift(c, Reply(updates[c])))  # type: ignore[misc]
        partial = lifted if partial is None else plain.merge(partial, lifted, own=True)
    there = ss.survivors_out(c for c in range(n) if c not in lost)
    signatures = {}
    for c in [c for c in range(n) if c not in lost]:
        kept[c], signatures[c] = ss.sign(kept[c], there)
    proof, opened = ss.signatures_out(signatures), {}
    for c in signatures:
        kept[c], opened[c] = clock("open", lambda c=c: ss.reveal(kept[c], there, proof))  # type: ignore[misc]
    total = clock(
        "unmask",
        lambda: ss.unmask(
            sitting, hidden & np.uint64(2**32 - 1), 32, shared=mail, survivors=set(signatures), notes=opened
        ),
    )
    if not (total == bare & np.uint64(2**32 - 1)).all():
        raise Disagreement("the secure sum is not the sum of the bare integers")
    assert partial is not None  # noqa: S101  somebody stayed
    apart = np.abs(scale.back(total, layout, n).update.buffer - plain.finish(partial).update.buffer).max()
    if apart > n / scale.unit:
        raise Disagreement(f"the secure and the plain sum differ by {apart:g}")
    return clock, sizes


def sent(client: int, reply: Reply) -> int:
    """Bytes of an answer on the wire."""
    message = body.answer_message(Answer((client,), replies=((client, reply),)), run="r", request=1)
    return sum(map(len, encode(message)))


def figures(numbers: int, turns: int = 3) -> Iterator[Figure]:
    """Every case, the best of so many turns: the machine is shared, and CPU time is not free of that."""
    for n, degree, goal, unmask in CASES:
        made = [attempt(n, numbers, degree) for _ in range(turns)]
        best = {name: min(clock[name] for clock, _ in made) for name in made[0][0].seen}
        name = f"{n} members, {degree or n - 1} neighbours"
        integers, share = best["integers"] * 1e3, best["plain"] * 1e3
        of = f"integers {integers:.0f} ms, its part of the plain sum {share:.0f} ms"
        yield Figure(f"{name}: masking, a client", best["mask"] * 1e3, "ms", goal, of)
        setup = (best["keys"] + best["shares"] + best["open"]) * 1e3
        yield Figure(f"{name}: keys, shares and openings, a client", setup, "ms")
        yield Figure(f"{name}: unmasking, the server", best["unmask"], "s", unmask)
        up, plain = made[0][1]["secure"] / numbers, made[0][1]["plain"] / numbers
        yield Figure(f"{name}: upload, bytes a number", up, "B", 4.01, f"plain {plain:.2f}")


def telling(numbers: int, turns: int = 31) -> Iterator[Figure]:
    """A client's time to round and mask updates of other contents, in turns: slowest median over quickest."""
    draw, rng, scale = secrets.token_bytes, np.random.default_rng(0), Scale(32, 16.0, 10, 1.0)
    begun = {c: ss.begin(Label("bench", "run", 0, 0), c, draw) for c in range(10)}
    text = ss.roster_out(ss.roster_of(begun[0].label, {c: ss.keys_out(s.keys) for c, s in begun.items()}))
    kept, mail = {}, {}
    for c, secret in begun.items():
        kept[c], mail[c] = ss.share(secret, text, draw)
    routed, clock = ss.routed(mail), Clock()
    contents = {
        "zeros": np.zeros(numbers, np.float32),
        "usual": rng.normal(0, 0.01, numbers).astype(np.float32),
        "tiny": rng.normal(0, 1e-41, numbers).astype(np.float32),  # below the smallest normal float
        "large": rng.choice(np.array([-16, 16], np.float32), numbers),
        "one in a thousand": np.where(rng.random(numbers) < 1e-3, np.float32(1), np.float32(0)),
    }

    def hide(name: str) -> None:
        whole = scale.out(Update.of({"w": contents[name]}), 1.0, Rng.of(0))
        ss.mask(kept[0], routed[0], whole, scale.bits)

    for name in chain(*(rng.permutation(list(contents)) for _ in range(turns))):
        clock(str(name), partial(hide, str(name)))
    times = {name: clock[name] * 1e3 for name in contents}
    of = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    apart = max(times.values()) / min(times.values())
    yield Figure("10 members: hiding, by content", apart, "times", None, of)


def encrypted(numbers: int, members: int, turns: int = 3) -> Iterator[Figure]:
    """An encrypted sum of ten updates with room for `members`, the best of so many turns.

    Raises Disagreement.
    """
    how, n = encrypted_sum(members=members), 10
    scale, rng = Scale(32, 16.0, n, 1.0), np.random.default_rng(n)
    updates = [Update.of({"w": rng.normal(0, 0.01, numbers).astype(np.float32)}) for _ in range(n)]
    whole = [scale.out(update, 1.0, Rng.of(c)) for c, update in enumerate(updates)]
    clock = Clock()
    for _ in range(turns):
        made = _ciphered(clock, how, whole)
    size = sent(0, Reply(Update(how.layout(len(whole[0])), made.reshape(-1), bits=how.bits)))
    name = f"BFV, room for {members}"
    yield Figure(f"{name}: encrypting, a client", min(clock.seen["encrypt"]), "s", 0.4)
    yield Figure(f"{name}: adding one, the server", min(clock.seen["add"]) * 1e3, "ms")
    yield Figure(f"{name}: decrypting, each of two clients", min(clock.seen["decrypt"]), "s", 0.4)
    yield Figure(f"{name}: upload, bytes a number", size / numbers, "B", 16.0, "secure sum 4.00")


def _ciphered(clock: Clock, how: EncryptedSum, whole: list[Ints]) -> Ints:
    """One encrypted sum of integers, compared with their sum; the last ciphertexts of it."""
    key, blocks = bfv.fresh(how.ring), how.ring.blocks(len(whole[0]), how.tags)
    tags = np.ones((blocks, how.tags), np.uint64)
    sums = np.zeros((2, blocks, bfv.N), np.uint64)
    for x in whole:
        made = clock("encrypt", lambda x=x: bfv.encrypt(how.ring, key, how.tagged(x, tags)))  # type: ignore[misc]
        clock("add", lambda made=made: np.add(sums, made, out=sums))  # type: ignore[misc]
    read = clock("decrypt", lambda: how.told(bfv.decrypt(how.ring, key, sums)))[0]
    if not (read[: len(whole[0])] == sum(whole) & np.uint64(2**32 - 1)).all():
        raise Disagreement("the encrypted sum is not the sum of the bare integers")
    return made


def main(words: list[str]) -> int:
    """Print the figures, write the file; 1 where sums disagree."""
    parser = argparse.ArgumentParser(prog="python -m bench secagg", description=__doc__)
    parser.add_argument("--numbers", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    found = []
    try:
        cases = [figures(asked.numbers), telling(asked.numbers)]
        if find_spec("tenseal"):
            cases += [encrypted(asked.numbers, members) for members in ROOMS]
        else:
            print("TenSEAL is not installed: no figures of encrypted sums", file=sys.stderr)
        for figure in chain.from_iterable(cases):
            print(figure, flush=True)
            found.append(figure)
    except Disagreement as why:
        print(f"the sums disagree, so no time counts: {why}", file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return 0
