"""Contracts as executable suites: run these over a part of your own, as we do over ours.

    check_metric(make)             make(rng) -> a metric of some random data
    check_codec(encode, decode)    as in atoll.wire.codec
    check_learner(learner, data)   data: one client's, small; fit is called about ten times
    check_transform(part)          a transform, or a chain of them
    check_aggregator(make)         make() -> an aggregator, before its round

Each returns None, or raises AssertionError with a message that says which law broke.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from .core import metrics
from .core.aggregate import Aggregator, Points, Reply, fold, points
from .core.errors import CodecError, IntegrityError, MisuseError, ProtocolError
from .core.message import Contribution, FitContext, Learner, fit_many
from .core.rng import Rng
from .core.transform import Context, Transform, chain
from .core.update import Layout, Leaf, Rows, Update
from .wire import codec
from .wire.codec import Message


def _law(holds: Any, law: str) -> None:
    if not holds:
        raise AssertionError(law)


def check_metric(make: Callable[[np.random.Generator], Any], *, examples: int = 20, seed: int = 0) -> None:
    """Merge is an associative, commutative monoid bit for bit, and the wire loses nothing.

    `make(rng)` builds one metric from random data, all with the same settings.
    """
    for n in range(examples):
        a, b, c = (make(Rng.of(seed).at(n, part).generator()) for part in "abc")
        before = _wire(a), _wire(b)
        _law(_wire(a.merge(b)) == _wire(b.merge(a)), "merge must be commutative, bit for bit")
        left, right = a.merge(b).merge(c), a.merge(b.merge(c))
        _law(_wire(left) == _wire(right), "merge must be associative, bit for bit")
        _law((_wire(a), _wire(b)) == before, "merge must not change what it merges")
        again = make(Rng.of(seed).at(n, "a").generator())
        _law(_wire(again) == _wire(a), "the same data must give the same metric")
        back = metrics.from_plain(json.loads(_wire(left)))
        _law(_wire(back) == _wire(left), "from_plain must give back what to_plain took apart")
        _law(
            _fingerprint(back.value) == _fingerprint(left.value),
            "a metric from the wire must show the same value",
        )
        _law(
            _wire(back.merge(a)) == _wire(left.merge(a)),
            "a metric from the wire must merge as the original does",
        )


def _wire(metric: Any) -> str:
    """Its bytes on the wire; also checks that they are numbers and lists."""
    plain = metrics.to_plain(metric)
    _law(metrics.kinds.get(plain[0]) is type(metric), f"a metric's kind must be registered, got {plain[0]!r}")
    _law(_numbers(plain[1:]), "to_plain must hold int, finite float and lists of these only")
    return json.dumps(plain)


def _numbers(plain: Any) -> bool:
    if type(plain) is list:
        return all(map(_numbers, plain))
    return type(plain) is int or (type(plain) is float and math.isfinite(plain))


def check_codec(
    encode: Callable[[Message], Iterable[bytes]] = codec.encode,
    decode: Callable[[bytes], Message] = codec.decode,
) -> None:
    """decode(encode(m)) is m; equal messages give equal bytes; damage is noticed wherever it is."""
    for message in _messages():
        frames = list(encode(message))
        data = b"".join(frames)
        _law(b"".join(encode(message)) == data, "the same message must give the same bytes")
        back = decode(data)
        _law(
            _fingerprint(back) == _fingerprint(message),
            f"decode must invert encode (message {message.kind!r})",
        )
        for at in range(0, len(data), max(1, len(data) // 97)):
            flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            _refused(decode, flipped, f"a flipped bit in byte {at}")
            _refused(decode, data[:at], f"a message cut after {at} bytes")
        _refused(decode, data + b"\0", "trailing garbage")
        _refused(decode, data + data, "a second message")


def _refused(decode: Callable[[bytes], Message], data: bytes, what: str) -> None:
    try:
        decode(data)
    except (CodecError, IntegrityError):
        return
    except Exception as error:
        raise AssertionError(
            f"{what} must raise CodecError or IntegrityError, not {type(error).__name__}"
        ) from error
    raise AssertionError(f"{what} must raise CodecError or IntegrityError, and was accepted")


def _messages() -> list[Message]:
    rng = Rng.of(0).generator()
    real = Update.of(
        {"w": rng.normal(size=(3, 5)), "b": np.zeros(()), "t": Rows(np.array([1, 9]), np.eye(2))}
    )
    ring = Update(Layout((Leaf("w", (9,)),)), rng.integers(0, 1 << 20, 9).astype(np.uint64), bits=20)
    head = {
        "none": None,
        "yes": True,
        "n": -5,
        "r": [0.5, 1.0],
        "t": {"a": [1, "b", b"c", []]},
        "ids": [1, 2],
    }
    long = rng.normal(size=300_000).astype(np.float32)  # more than one frame
    return [
        Message("empty"),
        Message("values", head),
        Message(
            "arrays",
            {},
            {d: np.arange(6, dtype=d).reshape(2, 3) for d in ("f4", "f8", "i8", "u8", "i4", "u1")},
        ),
        Message("updates", head, {"real": real, "ring": ring}, stream=7),
        Message("long", {}, {"x": long}),
    ]


def check_learner(learner: Learner, data: Any, *, seed: int = 0) -> None:
    """The contract of core/message.py, on one client's data and a few seeds."""
    params = _check_init(learner, seed)
    before = _fingerprint(params), _fingerprint(data)
    ctx = FitContext(Rng.of(seed).at("client", 0))
    made = learner.fit(params, data, ctx)
    _check_contribution(made, params)
    _law(_fingerprint(params) == before[0], "fit must not change the params it is given")
    _law(_fingerprint(data) == before[1], "fit must not change the data it is given")
    _law(
        _print(learner.fit(params, data, ctx)) == _print(made),
        "fit with the same seed must give the same bytes",
    )
    _check_state(learner, params, data, made, seed)
    _check_many(learner, params, data, seed)
    _check_evaluate(learner, params, data, ctx)
    _law(_fingerprint(params) == before[0], "evaluate must not change the params it is given")
    _law(_fingerprint(data) == before[1], "evaluate must not change the data it is given")


def _check_init(learner: Learner, seed: int) -> Update:
    made = learner.init(Rng.of(seed).generator())
    _law(
        isinstance(made, Mapping), f"init must return a mapping of names to arrays, got {type(made).__name__}"
    )
    params = Update.of(made)
    _law(len(params), "init must return at least one array")
    _law(params.finite(), "init must return finite numbers")
    again = Update.of(learner.init(Rng.of(seed).generator()))
    _law(_fingerprint(again) == _fingerprint(params), "init with the same seed must give the same bytes")
    return params


def _check_contribution(made: Any, params: Update) -> None:
    _law(isinstance(made, Contribution), f"fit must return a Contribution, got {type(made).__name__}")
    update = made.update
    _law(
        _fits(update, params),
        f"a contribution must have the leaves of the params: {params.layout}, got {update.layout}"
        + (f" and rows of {sorted(update.rows)}" if update.rows else ""),
    )
    _law(update.finite(), "a contribution must hold finite numbers")
    _law(
        made.weight >= 0 and math.isfinite(made.weight),
        f"a weight must be finite and >= 0, got {made.weight}",
    )
    _law(made.steps >= 1, f"steps must be at least 1, got {made.steps}")
    _check_metrics(made.metrics, "fit")


def _fits(update: Update, params: Update) -> bool:
    """The same leaves in the same order; some may come as rows of their table."""
    dense = tuple(leaf for leaf in params.layout.leaves if leaf.name not in update.rows)
    tables = all(
        name in params
        and params[name].ndim == 2
        and rows.values.shape[1:] == params[name].shape[1:]
        and (not len(rows.ids) or 0 <= rows.ids.min() <= rows.ids.max() < len(params[name]))
        for name, rows in update.rows.items()
    )
    return update.layout.leaves == dense and tables


def _check_metrics(made: Any, who: str) -> None:
    _law(
        isinstance(made, Mapping), f"{who} must give metrics as a mapping of names, got {type(made).__name__}"
    )
    for name, value in made.items():
        _law(isinstance(name, str), f"{who}'s metrics must be named by strings, got {name!r}")
        try:
            metrics.to_plain(metrics.lift(value))
        except (MisuseError, AttributeError):
            raise AssertionError(f"{who}'s metric {name!r} must be a number or a mergeable metric") from None


def _check_state(learner: Learner, params: Update, data: Any, made: Contribution, seed: int) -> None:
    """What a client kept is given back next time, perhaps twice: a round may be repeated."""
    kept = deepcopy(made.state)
    ctx = FitContext(Rng.of(seed).at("client", 0, "round", 1), round=1, state=made.state)
    first = learner.fit(params, data, ctx)
    _law(
        _fingerprint(made.state) == _fingerprint(kept),
        "fit must not change the state it is given, but return a new one",
    )
    again = learner.fit(params, data, dataclasses.replace(ctx, state=kept))
    _law(
        _print(first) == _print(again),
        "fit with an equal state must give the same bytes: keep nothing elsewhere",
    )


def _check_many(learner: Learner, params: Update, data: Any, seed: int) -> None:
    """fit_many == [fit, ...] to 1e-5, also where clients differ in their random streams."""
    ctxs = [FitContext(Rng.of(seed).at("client", k), client=k) for k in range(3)]
    batch = fit_many(learner, params, [data] * 3, ctxs)
    _law(len(batch) == 3, f"fit_many must return one contribution per client, got {len(batch)} of 3")
    for many, ctx in zip(batch, ctxs, strict=True):
        one = learner.fit(params, data, ctx)
        _check_contribution(many, params)
        _law(
            many.weight == one.weight and many.steps == one.steps,
            "fit_many must give fit's weights and steps",
        )
        close = many.update.layout == one.update.layout and _close(many.update, one.update)
        _law(close, "fit_many must equal fit one by one to 1e-5")
        _law(many.metrics.keys() == one.metrics.keys(), "fit_many must give the metrics that fit gives")


def _close(a: Update, b: Update) -> bool:
    pairs = [(a.buffer, b.buffer), *((a.rows[n].values, b.rows[n].values) for n in a.rows if n in b.rows)]
    same = all(n in b.rows and np.array_equal(a.rows[n].ids, b.rows[n].ids) for n in a.rows)
    return (
        same and len(a.rows) == len(b.rows) and all(np.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in pairs)
    )


def _check_evaluate(learner: Learner, params: Update, data: Any, ctx: FitContext) -> None:
    made = learner.evaluate(params, data, ctx)
    _check_metrics(made, "evaluate")
    again = learner.evaluate(params, data, ctx)
    _law(
        _fingerprint(_plain(made)) == _fingerprint(_plain(again)), "evaluate must give the same metrics twice"
    )


def _plain(made: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics.to_plain(metrics.lift(value)) for name, value in made.items()}


def check_transform(part: Transform, params: Mapping[str, Any] | None = None, *, seed: int = 0) -> None:
    """What core/transform.py promises of a part: values in, values out, and what it declares.

    `params`: a model it fits; a small float64 one by default. Numbers are drawn from N(0, 1).
    """
    like = Update.of(params if params is not None else {"w": np.zeros((3, 2)), "b": np.zeros(5)})
    rng = Rng.of(seed).generator()
    drawn = [like.map(lambda v: rng.normal(size=v.shape).astype(v.dtype)) for _ in range(3)]
    ctx = Context(Rng.of(seed).at("ctx"), weight=2.0, population=3, steps=4)
    state, sent = part.start(like, "out"), []
    for update in drawn:
        out, state = _pure(part.out, update, state, ctx, f"{part}.out")
        _check_sent(part, out, like)
        sent.append(out)
    total = sent[0] + sent[1] + sent[2]
    if total.bits is None and part.gives == "real":
        total = total.scale(ctx.weight)
    came = dataclasses.replace(ctx, weight=3 * ctx.weight, count=3)
    back, _ = _pure(part.back, total, part.start(like, "back"), came, f"{part}.back")
    _law(back.layout == like.layout and not back.bits, f"{part}.back must give back the model's leaves")
    _law(back.finite(), f"{part}.back must give finite numbers for finite ones")
    _check_chain(part, drawn[0], like, ctx)


def _pure(step: Any, update: Update, state: Any, ctx: Context, name: str) -> tuple[Update, Any]:
    before = _fingerprint(update), _fingerprint(state)
    once, again = step(update, state, ctx), step(update, state, ctx)
    _law(
        _fingerprint(once) == _fingerprint(again), f"{name} must answer the same to the same: no hidden state"
    )
    _law(
        (_fingerprint(update), _fingerprint(state)) == before,
        f"{name} must not change what it is given, but return a new value",
    )
    answer: tuple[Update, Any] = once
    return answer


def _check_sent(part: Transform, sent: Update, like: Update) -> None:
    expected = part.outgoing(like).layout
    _law(
        sent.layout == expected,
        f"{part}.out must send the leaves it declares by adds and drops: {expected}, got {sent.layout}",
    )
    ring = any(t.gives == "ring" for t in part.steps)
    _law(
        bool(sent.bits) == ring, f"{part}.out must give what it declares: {'ring' if ring else 'real'} values"
    )
    for t in part.steps:
        for name, most in t.adds.items():
            _law(ring or np.abs(sent[name]).max() <= most, f"{part} declares {name!r} up to {most:g}")
    last = part.steps[-1] if part.steps else part
    if last.sets_bound is not None:
        _law(sent.norm() <= last.sets_bound, f"{part} declares a norm of at most {last.sets_bound:g}")


def _check_chain(part: Transform, update: Update, like: Update, ctx: Context) -> None:
    """chain() is neutral, and how chains are nested makes no difference."""
    alone, _ = part.out(update, part.start(like, "out"), ctx)
    for way in (chain(part), chain(chain(), part), chain(part, chain())):
        _law(way == chain(part), "chain() must be neutral")
        got, _ = way.out(update, way.start(like, "out"), ctx)
        _law(_fingerprint(got) == _fingerprint(alone), f"chain({part}) must do what {part} does")


def check_aggregator(make: Callable[[], Aggregator], *, examples: int = 5, seed: int = 0) -> None:
    """Merge is a commutative monoid: any order and any tree of edges gives the same bytes.

    Replies of other models, and numbers that are not finite, must be refused with ProtocolError.
    """
    like = Update.of({"w": np.ones((3, 2)), "b": np.ones(4)})
    for n in range(examples):
        rng = Rng.of(seed).at(n).generator()
        replies = [(peer, _reply(like, rng)) for peer in range(7)]
        ours = make().at(_round(like), range(7), Rng.of(seed).at("round", n))
        flat = _finished(ours, fold(ours, replies))
        for _ in range(4):
            order = [replies[i] for i in rng.permutation(7)]
            _law(_finished(ours, fold(ours, order)) == flat, "the order of replies must not matter")
            _law(_finished(ours, _tree(ours, order, rng)) == flat, "a tree of edges must give the flat total")
        again = make().at(_round(like), range(7), Rng.of(seed).at("round", n))
        _law(_finished(again, fold(again, replies)) == flat, "the same replies must give the same total")
    for bad in (
        like.map(lambda v: np.where(v > 0, np.nan, v)),
        like.map(lambda v: v * np.inf),
        like.pick("w".__eq__),
    ):
        try:
            ours.finish(ours.lift(0, Reply(bad)))
        except ProtocolError:
            continue
        raise AssertionError("numbers that are not finite, or leaves of another model, must be refused")


def _round(like: Update) -> Points:
    return points(like, 7, 100.0)


def _reply(like: Update, rng: np.random.Generator) -> Reply:
    scale = 10.0 ** rng.integers(-6, 3)
    values = like.map(lambda v: rng.normal(size=v.shape) * scale)
    return Reply(values, float(rng.integers(1, 100)), {"loss": float(rng.random())})


def _tree(ours: Aggregator, replies: Sequence[tuple[int, Reply]], rng: np.random.Generator) -> Any:
    """The replies merged in a random tree."""
    parts = [ours.lift(peer, reply) for peer, reply in replies]
    while len(parts) > 1:
        a = parts.pop(int(rng.integers(len(parts))))
        b = parts.pop(int(rng.integers(len(parts))))
        parts.append(ours.merge(a, b))
    return parts[0]


def _finished(ours: Aggregator, partial: Any) -> Any:
    total = ours.finish(partial)
    return _fingerprint([total.update, total.weight, total.count, _plain(total.metrics)])


def _print(made: Contribution) -> Any:
    return _fingerprint([made.update, made.weight, _plain(made.metrics), made.steps, made.state])


def _fingerprint(value: Any) -> Any:
    """Everything a value holds, in a form that compares bit for bit. Unknown types by their own ==."""
    match value:
        case Update():
            return value.layout, value.bits, _fingerprint(value.buffer), _fingerprint(dict(value.rows))
        case Message():
            return value.kind, _fingerprint(value.head), _fingerprint(value.arrays), value.stream
        case np.ndarray():
            return str(value.dtype), value.shape, value.tolist() if value.dtype == object else value.tobytes()
        case float():
            return value.hex()
        case Mapping():
            return {name: _fingerprint(v) for name, v in value.items()}
        case str() | bytes():
            return value
        case Sequence():
            return [_fingerprint(v) for v in value]
    if hasattr(value, "__array__"):  # a tensor, a data frame
        return _fingerprint(np.array(value))
    if hasattr(value, "__dict__"):
        return type(value), _fingerprint(vars(value))
    return deepcopy(value)
