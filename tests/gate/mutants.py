"""Ten thousand ways to answer wrongly: an honest message, changed by a seed so that it cannot be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from atoll.core.metrics import Mean, to_plain
from atoll.core.update import Update
from atoll.wire.codec import Message
from atoll.wire.coded import compact
from atoll.wire.packed import pack
from atoll.wire.values import Part, Said, Values
from tests.gate.answers import REQUEST, RUN, Round, forged, opened

FORMS = {"raw", "gather", "sum", "buckets", "sites", "notes", "none"}
Draw = np.random.Generator
Mutant = Callable[[Draw, Round, Message], Message | None]


def _pick(draw: Draw, items: Any) -> Any:
    items = list(items)
    return items[int(draw.integers(len(items)))]


def _said(change: Callable[[Draw, Round, Values], bool | None]) -> Mutant:
    """A change of the plain values; False where it does not apply."""

    def mutant(draw: Draw, asked: Round, message: Message) -> Message | None:
        said = opened(message)
        return None if change(draw, asked, said) is False else forged(message, said)

    return mutant


def _weight(draw: Draw, asked: Round, said: Values) -> bool | None:
    odd = [
        math.nan,
        math.inf,
        -math.inf,
        -1.0,
        -(2.0**-40),
        64.0 + 2.0**-40,
        1e300,
        float(draw.uniform(65, 1e9)),
    ]
    if said.replies:
        _pick(draw, said.replies).weight = _pick(draw, odd)
    elif said.parts:
        part = _pick(draw, said.parts)
        part.weight = _pick(
            draw, [(-1, 0), (2**40, 0), (0, -1), (0, 2**33), (64 * 4 + int(draw.integers(1, 99)), 0)]
        )
    else:
        return False
    return None


def _clients(draw: Draw, asked: Round, said: Values) -> None:
    other = int(draw.integers(5, 2**40))
    _pick(
        draw,
        [
            lambda: said.clients.append(other),
            lambda: said.clients.append(said.clients[0]),
            lambda: said.clients.pop() if said.form not in ("sum", "buckets") else said.clients.append(other),
            lambda: said.failed.append((said.clients[-1], "late")),
            lambda: said.failed.append((other, "late")),
            lambda: said.clients.append(-other),
        ],
    )()


def _metric(draw: Draw, asked: Round, said: Values) -> bool | None:
    found = [r.metrics for r in said.replies] + [p.metrics for p in said.parts] + [m for _, m in said.sites]
    if not found:
        return False  # notes have none
    odd: list[Any] = [math.nan, -math.inf, 7, "text", None, True, [], ["mean"], ["nokind", 1], b"x"]
    odd += [
        ["mean", [0], [-1], 0],
        ["mean", [0] * 99, [1], 0],
        ["count", -1],
        ["count", 2**60],
        ["auc", 99, [], [], 0],
    ]
    odd += [to_plain(Mean(1.0, 2.0**60)), ["minmax", [2.0, 1.0], [3], 0], ["confusion", [10**6], [], 0]]
    odd += [
        ["histogram", [1.0], [2], 0],
        [["mean"], 1],
        {"mean": 1},
        ["tally", [[0, 1]]],
        ["quantiles", 0, [1, 1], [[1], [1]], 0],
    ]
    odd += [] if said.replies else [0.5, 0.25]
    kind = int(draw.integers(4))
    if kind == 0:
        _pick(draw, found).update({f"m{i}": 0.5 for i in range(int(draw.integers(65, 400)))})
    elif kind == 1:
        _pick(draw, found)[f"n\x07{draw.integers(99)}"] = 0.5
    else:
        _pick(draw, found)[f"m{draw.integers(99)}"] = _pick(draw, odd)
    return None


def _leaves(draw: Draw, asked: Round, said: Values) -> bool | None:
    if not said.leaves:
        return False
    i = int(draw.integers(len(said.leaves)))
    name, shape = said.leaves[i]
    _pick(
        draw,
        [
            lambda: said.leaves.pop(i),
            lambda: said.leaves.append((f"x{draw.integers(99)}", [int(draw.integers(1, 500)), 30])),
            lambda: said.leaves.__setitem__(i, (name + "é", shape)),
            lambda: said.leaves.__setitem__(i, (name, [*shape, 1])),
            lambda: said.leaves.__setitem__(i, (name, [int(draw.integers(500, 10**6)), *shape])),
            said.leaves.reverse,
            lambda: said.leaves.append(said.leaves[i]),
            lambda: said.leaves.__setitem__(i, (name, [-1])),
        ],
    )()
    return None


def _form(draw: Draw, asked: Round, said: Values) -> bool | None:
    was = said.form
    _pick(
        draw,
        [
            lambda: setattr(said, "form", _pick(draw, sorted(FORMS - {was}))),
            lambda: said.replies.append(Said(1, 1.0, {})),
            lambda: said.parts.append(Part(0, (1, 0), 1, {}, 1, None, [])),
            lambda: said.sites.append((1, {})),
            lambda: said.notes.append((1, b"note")),
            lambda: setattr(said, "sent", _pick(draw, [-1, 2**62, -(2**63)])),
            lambda: said.tables.append(f"t{draw.integers(9)}!"),
            lambda: said.failed.append((9, "x" * 8193)),
        ],
    )()
    return None


def _sum(draw: Draw, asked: Round, said: Values) -> bool | None:
    if not said.parts:
        return False
    part = _pick(draw, said.parts)
    _pick(
        draw,
        [
            lambda: setattr(part, "count", int(draw.integers(5, 99))),
            lambda: setattr(part, "count", -int(draw.integers(1, 99))),
            lambda: setattr(part, "count", 0),
            lambda: setattr(part, "place", int(draw.integers(2, 99))),
            lambda: setattr(part, "place", -1),
            lambda: setattr(part, "limbs", part.limbs + 1),
            lambda: setattr(part, "limbs", 0),
            lambda: setattr(part, "bits", 33),
            lambda: part.widths.append((0, int(draw.integers(4, 99)))),
            lambda: part.widths.append((int(draw.integers(9, 99)), 3)),
        ],
    )()
    return None


def _head(draw: Draw, asked: Round, message: Message) -> Message:
    head = dict(message.head)
    change: dict[str, Any] = _pick(
        draw,
        [
            {"run": f"r{draw.integers(2, 9999):05}x"},
            {"request": REQUEST + int(draw.integers(1, 9999))},
            {"request": REQUEST - int(draw.integers(1, 9999))},
            {"request": float(REQUEST) + 0.5},
            {"run": RUN.encode()},
            {"run": [RUN]},
            {"form": ""},
            {f"more{draw.integers(99)}": 1},
        ],
    )
    return Message("answer", {**head, **change}, message.arrays)


def _kind(draw: Draw, asked: Round, message: Message) -> Message:
    kind = _pick(draw, ["ask", "params", "Answer", "answer ", "answer\x00", f"k{draw.integers(999)}"])
    return Message(kind, message.head, message.arrays)


def _numbers(draw: Draw, asked: Round, message: Message) -> Message | None:
    """Numbers that cannot be: not finite, out of the ring, beyond what the clients can have added."""
    names = [n for n in message.arrays if n != "values"]
    if not names:
        return None
    name = _pick(draw, names)
    x = np.array(message.arrays[name])
    if ".ids." in name:
        x[:] = _pick(draw, [x[::-1] if len(x) > 1 else x + 99, x - 60, x + 60, x * 0 - 1])
    elif x.dtype.kind == "f":
        odd = [np.nan, np.inf, -np.inf] + ([3e38, -3e38] if asked.form == "raw" and x.dtype == "f4" else [])
        x.reshape(-1)[int(draw.integers(x.size))] = _pick(draw, odd)
    elif compact(x):
        _code(draw, x)
    elif asked.bits and asked.form == "raw":
        x[-1, int(draw.integers(x.shape[1]))] |= 0xF0
    else:
        full = np.zeros(x.shape[1], np.int64)
        full[int(draw.integers(x.shape[1]))] = _pick(draw, [2**62, -(2**63), -(2**62), 2**63 - 1])
        x = pack(full)
    return forged(message, **{name: x})


def _code(draw: Draw, x: np.ndarray) -> None:
    """The head of a compact update, changed in place so that it is none of this model."""
    _pick(
        draw,
        [
            lambda: x.__setitem__(0, int(draw.integers(3, 256))),
            lambda: x.__setitem__(1, int(draw.choice([0, 1, 2, 3, 5, 6, 7, 9, 16, 64, 255]))),
            lambda: x.__setitem__(2, int(draw.choice([3, 5, 6, 7, 9, 16, 64, 255]))),
            lambda: x.__setitem__(3, int(draw.integers(1, 256))),
            lambda: x.__setitem__(slice(6, 12), int(draw.integers(1, 256))),
            lambda: x.__setitem__(slice(22, 28), int(draw.integers(1, 256))),
            lambda: x.__setitem__(slice(30, 36), int(draw.integers(1, 256))),
        ],
    )()


def _shape(draw: Draw, asked: Round, message: Message) -> Message | None:
    """Arrays of another shape or type, one too many or too few."""
    names = [n for n in message.arrays if n != "values"]
    if not names:
        return forged(message, rows=np.ones((5, int(draw.integers(1, 99)))))
    name = _pick(draw, names)
    x = np.array(message.arrays[name])
    n = int(draw.integers(1, 99))
    changed: dict[str, Any] = _pick(
        draw,
        [
            {name: None},
            {f"{name}x": x},
            {f"rows{n}": np.ones((100 + n, 30), "f4")},
            {name: np.ones((1000 + n, *x.shape), x.dtype)},
            {name: x[None]},
            {name: x[..., :-1]},
            {name: np.concatenate([x, x[..., :1]], -1)},
            {name: np.ones(n, "f8")},
            {name: np.zeros(x.shape, "i4")},
            {name: np.zeros(x.shape, "u8")},
            {name: Update.of({"w": np.ones(n, "f4")})},
            {"values": np.zeros(n, "u1")},
            {"values": np.ones(n)},
        ],
    )
    return forged(message, **changed)


WAYS: dict[str, Mutant] = {
    "weight": _said(_weight),
    "clients": _said(_clients),
    "metric": _said(_metric),
    "leaves": _said(_leaves),
    "form": _said(_form),
    "sum": _said(_sum),
    "head": _head,
    "kind": _kind,
    "numbers": _numbers,
    "shape": _shape,
}


def mutant(seed: int, asked: Round) -> tuple[str, Message]:
    """A way, and the message of this seed that is wrong in that way (another, where it does not apply)."""
    draw = np.random.default_rng(seed)
    honest = asked.message()
    while True:
        way = _pick(draw, WAYS)
        changed = WAYS[way](draw, asked, honest)
        if changed is not None:
            return way, changed
