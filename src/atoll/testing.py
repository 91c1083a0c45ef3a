"""Contracts as executable suites: run these over a part of your own, as we do over ours.

    check_metric(make)             make(rng) -> a metric of some random data
    check_codec(encode, decode)    as in atoll.wire.codec
    check_learner(learner, data)   data: one client's, small; fit is called about ten times, and clipped, if
                                   it has that and the data has x and y, about as often
    check_transform(part)          a transform, or a chain of them
    check_aggregator(make)         make() -> an aggregator, before its round
    check_link(make)               make(desk) -> a server of that desk and links to it, see there
    check_store(make)              make(name) -> the store called so, empty the first time

Each returns None, or raises AssertionError with a message that says which law broke.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np

from .core import metrics
from .core.aggregate import Aggregator, Points, Reply, fold, points
from .core.errors import AtollError, CodecError, IntegrityError, MisuseError, ProtocolError, StateError
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
    _check_clipped(learner, params, data)
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


def _check_clipped(learner: Any, params: Update, data: Any) -> None:
    """One row moves a sum of clipped gradients by the norm at most: privacy for single rows rests on it."""
    if not hasattr(learner, "clipped") or not hasattr(data, "y"):
        return
    some = list(range(min(5, len(data.y))))
    for norm in (1e-3, 1.0):
        whole = learner.clipped(params, _Some(data, some), norm)
        for i in some:
            rest = learner.clipped(params, _Some(data, [j for j in some if j != i]), norm)
            moved = (whole - rest).norm()
            _law(moved <= norm * (1 + 1e-4), f"a row changed clipped(..., {norm:g}) by {moved:.4g}: too much")


class _Some:
    """Some rows of a client's data."""

    def __init__(self, data: Any, rows: Sequence[int]) -> None:
        self.x, self.y = np.asarray(data.x)[rows], np.asarray(data.y)[rows]

    def __len__(self) -> int:
        return len(self.y)


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


def check_link(make: Callable[[Any], Any]) -> None:
    """What a transport promises: letters once and in order, one receipt for an upload, nothing for strangers.

    `make(desk)`: an async context manager that gives (service, connect), a Service of that desk served
    by your transport and connect(name) -> a new Link for that client; see transport/conformance.py.
    """
    from .transport.conformance import check

    check(make)


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


def check_store(make: Callable[[str], Any]) -> None:
    """What atoll.control.store promises: acknowledged is durable, again is nothing, over is over.

    `make(name)` opens the store called `name`: a new one the first time, the same one after that.
    """
    for number, laws in enumerate((_check_runs, _check_journal, _check_blobs, _check_nodes, _check_rest)):
        laws(partial(make, f"store{number}"))


def _raises(
    expected: type[AtollError], law: str, call: Callable[..., Any], *given: Any, **named: Any
) -> None:
    try:
        call(*given, **named)
    except expected:
        return
    raise AssertionError(f"{law}: expected {expected.__name__}")


def _check_runs(make: Callable[[], Any]) -> None:
    with make() as store:
        first, second = (store.submit({"rounds": n, "lr": 0.1}, -(2**63) - n, "ann") for n in (1, 2))
        _law(store.next_queued() == first, "the queue must give the run that has waited longest")
        _law(store.move(first, "running", frm=("queued",)), "a queued run must start")
        _law(not store.move(first, "running", frm=("queued",)), "a move must need the state it starts from")
        _law(store.next_queued() == second, "a run that started must leave the queue")
        now = store.clock()
        _law(store.run_lease(first, "a", now + 60), "a free run must be leased")
        _law(store.run_lease(first, "a", now + 90), "its holder must be able to prolong a lease")
        _law(not store.run_lease(first, "b", now + 60), "a leased run must not be taken")
        _law(store.run_lease(second, "a", now - 1), "a lease may be over at once")
        _law(store.run_lease(second, "b", now + 60), "a lease that is over must not hold")
        _raises(MisuseError, "a finished run must stay so", store.move, first, "running", frm=("done",))
        before = store.runs()
    with make() as store:
        _law(store.runs() == before, "runs must survive a restart")
        _law(store.run(first)["table"] == {"rounds": 1, "lr": 0.1}, "a job must come back as it was given")
        _law(store.run(second)["seed"] == -(2**63) - 2, "a seed must come back whole")
        _law(store.move(first, "done", frm=("running",)), "a running run must end")
        _law(not store.run_lease(first, "a", now + 60), "a run that ended must not be leased")
        _raises(StateError, "an unknown run must be refused", store.run, "r9999-000000")
        _law(store.verify().ok, "an untouched chain must verify")


def _check_journal(make: Callable[[], Any]) -> None:
    with make() as store:
        run = store.submit({}, 0, "ann")
        journal, other = store.journal(run), store.journal(run, "edge/0")
        _raises(StateError, "an answer needs a question", journal.answered, 0, "a")
        for request in (0, 1, 2):
            journal.asked(request, {"n": request, "x": 1e-300})
        journal.asked(1, {"n": "again"})
        other.asked(0, {})
        blobs = [store.blobs.put(bytes([n]) * 100) for n in range(3)]
        _law(journal.answered(1, "b", blob=blobs[0], info={"w": 0.1}), "a first answer must be taken")
        _law(journal.answered(0, "a", reason="no \0data \ud800"), "a refusal is an answer")
        _law(not journal.answered(1, "b", blob=blobs[1]), "a second answer of a peer must change nothing")
        _law(other.answered(0, "b", blob=blobs[1]), "scopes must be apart")
        _raises(StateError, "an answer must not name a missing blob", journal.answered, 1, "c", blob="0" * 64)
        journal.closed(1, ["b"], {"c": "late"})
        journal.closed(1, ["b"], {"c": "late"})
        _raises(StateError, "a request must close once", journal.closed, 1, ["b", "c"], {})
        _raises(StateError, "a closed request must take no answer", journal.answered, 1, "c", blob=blobs[1])
        _law(not journal.answered(1, "b", blob=blobs[0]), "an answer recorded before must be known for ever")
        _law(journal.note(1, {"round": 1, "loss": float("inf")}), "a first note must be taken")
        _law(not journal.note(1, {"round": 1}), "a second note of a number must change nothing")
        before = journal.resume()
    _check_resume(make, run, blobs, before)


def _check_resume(make: Callable[[], Any], run: str, blobs: Sequence[str], before: Any) -> None:
    with make() as store:
        journal, other = store.journal(run), store.journal(run, "edge/0")
        found = journal.resume()
        _law(found == before, "a journal must survive a restart")
        _law(found.state is None and sorted(found.asked) == [0, 1, 2], "all that was asked must come back")
        _law(found.asked[1] == {"n": 1, "x": 1e-300}, "what was asked first must stand")
        order = [(a.request, a.peer, a.blob) for a in found.answers]
        _law(order == [(1, "b", blobs[0]), (0, "a", None)], "answers must come back in their order")
        _law(
            list(found.closed) == [1] and found.closed[1].missing == {"c": "late"}, "what closed must be told"
        )
        journal.closed(0, [], {"a": "no data"})
        journal.checkpoint(b"state", 2, 1)
        _raises(StateError, "a checkpoint must not go back", journal.checkpoint, b"old", 1, 1)
        _raises(StateError, "what a checkpoint holds takes no answer", journal.answered, 0, "z")
        _raises(StateError, "what a checkpoint holds is not asked again", journal.asked, 1, {})
        found = journal.resume()
        _law((found.state, found.requests, found.notes) == (b"state", 2, 1), "a checkpoint must come back")
        _law(list(found.asked) == [2] and not found.answers, "a checkpoint must end what it holds")
        _law(store.history(run) == [{"round": 1, "loss": float("inf")}], "notes must outlive a checkpoint")
        _law(store.run(run)["rounds"] == 1, "a run must count its rounds")
        _law(not store.blobs.exists(blobs[0]), "a checkpoint must let go of what it holds")
        _law(other.resume().answers[0].blob == blobs[1], "a checkpoint must leave other scopes alone")
        _law(store.blobs.exists(blobs[1]), "a blob that another scope names must stay")
        other.drop()
        _law(not store.blobs.exists(blobs[1]), "a dropped scope must let go of its blobs")
        _law(not other.resume().asked, "a dropped scope must be empty")
        _check_batch(store, journal)
        _check_under_way(journal, blobs[2])
        _law(store.verify().ok, "an untouched chain must verify")


def _check_batch(store: Any, journal: Any) -> None:
    with store.batch():
        journal.answered(2, "x")
        journal.answered(2, "y")
    try:
        with store.batch():
            journal.answered(2, "z")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    peers = [a.peer for a in journal.resume().answers]
    _law(peers == ["x", "y"], "a batch must be kept whole or not at all")


def _check_under_way(journal: Any, blob: str) -> None:
    """Requests a checkpoint keeps are asked, answered and closed as before."""
    journal.asked(3, {})
    journal.answered(2, "w", blob=blob)
    journal.checkpoint(b"later", 4, 1, keep=[2])
    found = journal.resume()
    _law(sorted(found.asked) == [2], "a checkpoint must keep the requests that are under way")
    _law(found.answers[-1].blob == blob, "a request under way must keep its answers")
    journal.asked(2, {"again": True})
    _law(journal.resume() == found, "what a checkpoint kept may be asked again")
    _raises(StateError, "what it did not keep may not", journal.asked, 3, {})
    _law(journal.answered(2, "v", reason="late"), "a request under way must take answers")
    journal.closed(2, ["w"], {"v": "late", "x": "", "y": ""})
    _law(list(journal.resume().closed) == [2], "a request under way must close")
    journal.checkpoint(b"last", 4, 1)
    _law(not journal.resume().asked, "a checkpoint must end what it no longer keeps")


def _check_blobs(make: Callable[[], Any]) -> None:
    with make() as store:
        name = store.blobs.put(b"abc")
        _law(store.blobs.put(iter([b"a", b"bc"])) == name, "equal bytes must have one name")
        spooled = store.spool / "upload"
        spooled.write_bytes(b"body")
        adopted = store.blobs.adopt(spooled, "ab" * 32)
        _law(adopted.read_bytes() == b"body" and not spooled.exists(), "an upload must move under its name")
        for bad in ("../x", "AB" * 32, "a" * 63, "a" * 65, "a" * 63 + "/"):
            _raises(MisuseError, "a blob's name must be hexadecimal", store.blobs.path, bad)
        store.blobs.keep(name, "me")
        _raises(StateError, "a missing blob must not be kept", store.blobs.keep, "0" * 64, "me")
        _law(store.blobs.collect(older=3600) == 0, "a young blob must not be collected")
        _law(store.blobs.collect(older=0) == 1, "what nobody names must be collected")
        held = store.blobs.put(b"on its way")
        store.blobs.hold(held)
        _law(store.blobs.collect(older=0) == 0, "what is held must not be collected")
        store.blobs.superfluous([held])
        _law(store.blobs.exists(held), "what is held must stay")
        store.blobs.let_go(held)
        store.blobs.superfluous([held, name])
        _law(not store.blobs.exists(held), "what is let go of must go")
    with make() as store:
        _law(store.blobs.read(name) == b"abc", "what is named must stay")
        store.blobs.release(name, "me")
        _law(store.blobs.collect(older=0) == 1 and not store.blobs.exists(name), "released is collected")
        _raises(StateError, "a missing blob must be told", store.blobs.read, name)


def _check_nodes(make: Callable[[], Any]) -> None:
    with make() as store:
        end = store.head()[0]
        store.node_seen("bank-a", "client", {"parent": "edge-1", "data": ["loans"]})
        store.node_seen("bank-a", "client", {"parent": "edge-1", "data": ["loans"]})
        _law(store.head()[0] == end + 1, "a sign of life must be no event")
        store.certificate_add(2**150, "bank-a", "client", store.clock() + 60)
        _law(store.drain("bank-a", True) and not store.drain("bank-a", True), "a node must drain once")
        _law(store.revoke("bank-a") and not store.revoke("bank-a"), "a name must be revoked once")
    with make() as store:
        (node,) = store.nodes()
        _law(node["drained"] and node["revoked"], "a node's marks must survive a restart")
        _law(node["parent"] == "edge-1" and node["info"] == {"data": ["loans"]}, "a node must be described")
        _law(store.revoked() == {"bank-a", 2**150}, "a revoked name's certificates must be refused")
        _law(store.readmit("bank-a"), "a revoked name must be let in again")
        _law(store.revoked() == {2**150}, "an old certificate must stay refused")
        _law(store.node_gone("bank-a") and not store.node_gone("bank-a"), "a node must go once")
        known = {"bank-a": ({"rounds": 3}, 0.9, 0)}
        _law(store.judged("r1", known, ["bank-a"]) == ("bank-a",), "a member must be quarantined")
        _law(store.judged("r1", known, ["bank-a"]) == (), "a member must be quarantined once")
    with make() as store:
        _law(store.nodes()[0]["quarantined"], "a quarantine must survive a restart")
        _law(store.reinstate("bank-a") and not store.reinstate("bank-a"), "a member must be reinstated once")
        _law(store.judged("r1", known, ["bank-a"]) == (), "an earlier run must not undo a reinstatement")
        _law(store.records()["bank-a"]["score"] == 0, "a reinstated member's record must begin anew")
        _law(store.verify().ok, "an untouched chain must verify")


def _check_rest(make: Callable[[], Any]) -> None:
    with make() as store:
        now = store.clock()
        store.token_add("a" * 64, "client", "bank-a", now + 60, "ann")
        store.token_add("b" * 64, "viewer", "ann", now + 60, "ann")
        _raises(StateError, "a token must be there once", store.token_add, "a" * 64, "client", "x", now)
        _law(store.token_use("a" * 64, now + 61) is None, "a token must run out")
        _law(store.token_use("a" * 64, now, "key") == ("client", "bank-a"), "a token must work")
        _law(store.token_use("a" * 64, now) is None, "a member's token must work once")
        _law(store.token_use("a" * 64, now, "other") is None, "a member's token must work for one key")
        _law(store.token_use("a" * 64, now, "key") == ("client", "bank-a"), "its user must be able to retry")
        _law(all(store.token_use("b" * 64, now) for _ in range(2)), "an operator's token must stay")
        _law(store.token_revoke("b" * 64), "a token must be revoked")
        _law(store.token_use("b" * 64, now) is None, "a revoked token must not work")
        blob = store.blobs.put(b"model")
        _law(store.model_add("r1", "m", blob, b"one", {"auc": 0.5}) == 1, "versions must begin at 1")
        _law(store.model_add("r1", "m", blob, b"two") == 1, "a model must be added once")
        _law(store.model_add("r2", "m", blob, str(2).encode()) == 2, "versions must grow by one")
        store.log_add("r1", "bank-a", "error", "Traceback \0 \ud800")
        woken: list[int] = []
        store.changed.append(woken.append)
        run = store.submit({}, 1, "ann")
        _law(woken == [store.head()[0]], "whoever watches must be called once after a commit")
        _law(store.events(woken[0] - 1)[0]["run"] == run, "an event must name its run")
    with make() as store:
        _law(
            store.model("m")["version"] == 2 and store.model("m", 1)["manifest"] == b"one", "models must stay"
        )
        _law(store.logs("r1")[0]["text"] == "Traceback ? ?", "a log must stay, in text that can be kept")
        _law(store.health()["ok"], "an untouched store must be healthy")
        _law(store.verify(head=store.head()).ok, "an untouched chain must verify")
        _law(not store.verify(head=(1, "0" * 64)).ok, "another chain must not verify")


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
    held = vars(value) if hasattr(value, "__dict__") else _slots(value)
    return deepcopy(value) if held is None else (type(value), _fingerprint(held))


def _slots(value: Any) -> dict[str, Any] | None:
    """What a dataclass with slots holds, such as Examples; None for what is none."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
