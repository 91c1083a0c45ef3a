"""Asks and answers come out of the wire as they went in, and integers take no byte too many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import atoll.learn.categories as cat
from atoll.core.aggregate import Partial, Points, Reply, Sum, fold, points
from atoll.core.edge import Answer, Task
from atoll.core.errors import CodecError, MisuseError, StateError
from atoll.core.metrics import AUC, Confusion, Count, Histogram, Mean, MinMax, Quantiles
from atoll.core.rng import Rng
from atoll.core.update import Layout, Leaf, Rows, Update
from atoll.learn.robust import Buckets, Gather
from atoll.wire.body import (
    Section,
    answer_message,
    answer_of,
    ask_head,
    limits,
    params_message,
    params_of,
    read_answer,
    task_of,
)
from atoll.wire.codec import Message, decode, encode
from atoll.wire.coded import Code, Coded
from atoll.wire.packed import pack, unpack, width
from atoll.wire.values import REASON

names = st.text(min_size=1, max_size=6)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
layouts = st.lists(st.tuples(names, shapes), max_size=3, unique_by=lambda leaf: leaf[0]).map(
    lambda leaves: Layout(tuple(Leaf(*leaf) for leaf in leaves))
)
ids = st.integers(0, 2**40)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
values = st.lists(st.floats(-1e6, 1e6), max_size=5)
metric = st.one_of(
    numbers,
    st.builds(Mean, numbers, st.floats(0, 1e6)),
    st.builds(Count, st.integers(0, 2**40)),
    values.map(MinMax),
    values.map(Quantiles),
    values.map(lambda v: Histogram([-1, 0, 2.5], v)),
    st.lists(st.integers(0, 2), max_size=4).map(lambda c: Confusion(3, c, c[::-1])),
    st.lists(st.tuples(st.integers(0, 1), st.floats(-9, 9)), min_size=1, max_size=4).map(
        lambda p: AUC(*zip(*p, strict=True))
    ),
    st.lists(st.none() | st.integers(-9, 9) | st.text(max_size=4), max_size=4).map(cat.Tally),
)
metrics = st.dictionaries(names, metric, max_size=3)
weights = st.floats(0, 2.0**20)
kinds = st.sampled_from(["<f4", "<f8", "ring", "sparse", "coded"])


@st.composite
def updates(draw: st.DrawFn, layout: Layout, kind: str, bits: int) -> Update:
    if kind == "ring":
        top = st.integers(0, 2**bits - 1)
        return Update(layout, draw(hnp.arrays("<u8", layout.size, elements=top)), bits=bits)
    if kind == "coded":
        where = np.flatnonzero(draw(hnp.arrays(np.bool_, layout.size)))
        return Coded(layout, Code(layout.size, np.dtype("<f4"), where, draw(hnp.arrays("<f4", len(where)))))
    rows = {}
    if kind == "sparse":
        for name in draw(st.lists(st.sampled_from(["t1", "täble", "t3"]), unique=True, max_size=3)):
            some = sorted(draw(st.sets(ids, max_size=4)))
            shape = (len(some), draw(st.integers(0, 3)))
            rows[name] = Rows(
                np.array(some, np.int64), draw(hnp.arrays(draw(st.sampled_from(["<f4", "<f8"])), shape))
            )
    dtype = "<f8" if kind == "<f8" else "<f4"
    return Update(layout, draw(hnp.arrays(dtype, layout.size)), rows=rows)


@st.composite
def replies(draw: st.DrawFn, real: bool = False) -> tuple[tuple[int, Reply], ...]:
    layout, bits = draw(layouts), draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["<f4", "<f8", "sparse", "coded"]) if real else kinds)
    clients = draw(st.lists(ids, unique=True, min_size=1, max_size=3))
    return tuple((c, Reply(draw(updates(layout, kind, bits)), draw(weights), draw(metrics))) for c in clients)


@st.composite
def partials(draw: st.DrawFn, layout: Layout) -> Partial:
    bits = draw(st.none() | st.integers(1, 64))
    limbs = 1 if bits else draw(st.integers(1, 2))
    if bits:
        sums = draw(hnp.arrays("<u8", (limbs, layout.size), elements=st.integers(0, 2**bits - 1)))
    else:
        most = 2 ** draw(st.integers(0, 62))
        sums = draw(hnp.arrays("<i8", (limbs, layout.size), elements=st.integers(-most, most)))
    rows = {}
    for name in draw(st.lists(st.sampled_from(["t1", "t2"]), unique=True)):
        some = sorted(draw(st.sets(ids, max_size=4)))
        shape = (len(some), draw(st.integers(1, 3)))
        rows[name] = Rows(np.array(some, np.int64), draw(hnp.arrays("<i8", shape)))
    found = draw(metrics.map(lambda m: {name: x for name, x in m.items() if type(x) is not float}))
    return Partial(layout, sums, draw(st.integers(0, 2**80)), draw(st.integers(0, 2**30)), found, bits, rows)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    failed = draw(st.dictionaries(ids, st.text(st.characters(categories=["L", "N", "P"])), max_size=2))
    sent, layout = draw(st.integers(0, 2**50)), draw(layouts)
    form = draw(st.sampled_from(["none", "raw", "gather", "sum", "buckets", "sites", "notes"]))
    clients = tuple(draw(st.lists(ids, unique=True, max_size=3)))
    match form:
        case "raw":
            kept = draw(replies())
            return Answer(tuple(c for c, _ in kept), None, failed, sent, kept)
        case "gather":
            kept = draw(replies(real=True))
            return Answer(tuple(c for c, _ in kept), kept, failed, sent)
        case "sum":
            return Answer(clients, draw(partials(layout)), failed, sent)
        case "buckets":
            one = draw(partials(layout))
            return Answer(clients, {0: one, 7: draw(partials(layout))}, failed, sent)
        case "sites":
            table = {c: draw(metrics) for c in clients}
            return Answer(clients, table, failed, sent)
        case "notes" if clients:
            return Answer(clients, {c: draw(st.binary(max_size=40)) for c in clients}, failed, sent)
    return Answer((), None, failed, sent)


def same(x: Any) -> Any:
    """Everything that must survive, in a form that compares bit for bit."""
    match x:
        case Answer():
            return x.clients, same(x.partial), dict(x.failed), x.sent, same(x.replies)
        case Reply():
            return same(x.update), x.weight, same(x.metrics)
        case Partial():
            return x.layout, same(x.sums), x.weight, x.count, same(x.metrics), x.bits, same(x.rows)
        case Update():
            return x.layout, x.bits, same(x.buffer), same(x.rows)
        case Rows():
            return same(x.ids), same(x.values)
        case np.ndarray():
            return x.dtype.str, x.shape, x.tobytes()
        case Mapping():
            return {name: same(value) for name, value in x.items()}
        case tuple():
            return tuple(map(same, x))
    return x


def through(message: Message) -> Message:
    return decode(b"".join(encode(message)))


@settings(max_examples=300)
@given(answers())
def test_an_answer_comes_out_as_it_went_in(answer: Answer) -> None:
    back = read_answer(through(answer_message(answer, run="r0001", request=4)))
    assert same(back) == same(answer)


@settings(max_examples=100)
@given(hnp.arrays("<i8", st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1)), st.integers(0, 63))
def test_integers_take_as_many_bytes_as_the_largest_needs(x: np.ndarray, shift: int) -> None:
    for array in (x >> shift, x.view("<u8") >> np.uint64(shift)):
        planes = pack(array)
        np.testing.assert_array_equal(unpack(planes, array.dtype), array, strict=True)
        least, most = min(map(int, array), default=0), max(map(int, array), default=0)
        signed = array.dtype.kind == "i"
        if least == most == 0:
            need = 0
        else:
            bits = max((n.bit_length() if n >= 0 else (~n).bit_length()) for n in (least, most)) + signed
            need = math.ceil(bits / 8)
        assert planes.shape == (need, len(array)) == (width(array), len(array))


@settings(max_examples=100)
@given(partials(Layout((Leaf("w", (5,)), Leaf("b", ()), Leaf("none", (0, 3))))))
def test_a_packed_sum_is_no_larger_than_its_leaves_need(partial: Partial) -> None:
    message = answer_message(Answer((1,), partial), run="r", request=0)
    for limb, sums in enumerate(partial.sums):
        for j, where in enumerate(partial.layout.slices.values()):
            assert message.arrays[f"0.{limb}.{j}"].nbytes == width(sums[where]) * len(sums[where])


@given(st.data())
def test_a_task_comes_out_as_it_went_in(data: st.DataObject) -> None:
    layout = data.draw(layouts)
    other = layout if data.draw(st.booleans()) else data.draw(layouts)
    params = Update(layout, np.zeros(layout.size, "f4"))
    clients = tuple(data.draw(st.lists(ids, unique=True, max_size=4)))
    used = tuple(data.draw(st.integers(-1, 99)) for _ in clients)
    exponents = tuple(data.draw(st.integers(-60, 60)) for _ in other.leaves)
    at = Points(other, exponents, data.draw(st.floats(2.0**-20, 1e6)), 3, data.draw(st.booleans()), {"t": 4})
    task = Task(
        data.draw(st.integers(0, 2**31)),
        Rng(data.draw(st.integers(0, 2**64 - 1))),
        clients,
        used,
        params,
        data.draw(st.none() | st.just(at)),
        tuple(data.draw(st.lists(ids, max_size=4))),
        want := data.draw(st.sampled_from(["fit", "evaluate", "note"])),
    )
    if want == "note":
        notes = {c: data.draw(st.binary(max_size=9)) for c in clients}
        task = replace(task, note=data.draw(st.binary(max_size=40)), notes=notes)
    head = through(Message("ask", ask_head(task))).head
    assert task_of({**head, "more": 1}, params_of(through(params_message(params)))) == task


def model() -> tuple[Update, list[tuple[int, Reply]]]:
    rng = np.random.default_rng(5)
    params = Update.of({"w": rng.normal(size=(40, 7)).astype("f4"), "b": np.ones(7, "f4")})
    made = [
        (c, Reply(Update(params.layout, rng.normal(size=287).astype("f4")), c + 1.0, {"loss": 0.1 * c}))
        for c in range(6)
    ]
    return params, made


@pytest.mark.parametrize(
    "rule", [Sum(), Gather(lambda U: np.median(U, axis=0)), Buckets(3, lambda U: U.mean(0))]
)
def test_through_the_wire_or_not_the_total_has_the_same_bytes(rule: Any) -> None:
    """Clients' raw replies folded by the server, and two edges' partials merged, against one flat fold."""
    params, made = model()
    rule = rule.at(points(params, 6, 64.0), range(6), Rng.of(3))
    flat = rule.finish(fold(rule, made))
    raw = [
        read_answer(through(answer_message(Answer((c,), replies=((c, r),)), run="r", request=1))).replies[0]
        for c, r in made
    ]
    halves = [
        read_answer(through(answer_message(Answer((), fold(rule, half)), run="r", request=1))).partial
        for half in (made[:2], made[2:])
    ]
    for total in (rule.finish(fold(rule, raw)), rule.finish(rule.merge(*halves))):
        assert total.update == flat.update
        assert (total.weight, total.count, total.metrics) == (flat.weight, flat.count, flat.metrics)


def test_a_number_stays_as_narrow_as_it_was() -> None:
    _, made = model()
    client, reply = made[0]
    message = answer_message(Answer((client,), replies=((client, reply),)), run="r", request=1)
    assert message.arrays["0"].nbytes == 4 * 287
    ring = Update(reply.update.layout, np.arange(287, dtype="<u8"), bits=20)
    message = answer_message(Answer((0,), replies=((0, Reply(ring)),)), run="r", request=1)
    assert message.arrays["0"].nbytes == 3 * 287


def test_replies_from_a_file_are_views_of_it(tmp_path) -> None:
    from tests.gate.answers import checked

    _, made = model()
    answer = Answer((0,), replies=(made[0],))
    path = tmp_path / "buffer"
    back = answer_of(checked(answer_message(answer, run="r", request=1), path), path)
    assert same(back) == same(answer)
    assert not back.replies[0][1].update.buffer.flags.owndata


def test_a_file_that_is_not_the_one_checked_is_no_answer(tmp_path) -> None:
    from tests.gate.answers import checked

    _, made = model()
    path = tmp_path / "buffer"
    good = checked(answer_message(Answer((0,), replies=(made[0],)), run="r", request=1), path)
    for change in ({"dtype": "nonsense"}, {"offset": 10**9}, {"shape": [3, 3]}, {"dtype": "<f8"}):
        sections = [
            Section(**{"name": s.name, "dtype": s.dtype, "offset": s.offset, "shape": s.shape, **change})
            for s in good.sections
        ]
        with pytest.raises(CodecError):
            answer_of(replace(good, sections=sections), path)
    with pytest.raises(StateError, match="cannot be read"):
        answer_of(good, tmp_path / "gone")


def test_a_metric_that_is_not_finite_counts_as_odd_and_reasons_are_cut() -> None:
    _, ((_, reply), *_) = model()
    said = replace(reply, metrics={"loss": math.nan, "gain": -math.inf, "n": np.float32(2)})
    answer = Answer((0,), None, {3: "x" * REASON + "end\x1b[31m\udcff"}, 0, ((0, said),))
    back = read_answer(through(answer_message(answer, run="r", request=1)))
    assert back.replies[0][1].metrics == {"loss": Mean(math.nan), "gain": Mean(-math.inf), "n": 2.0}
    assert len(back.failed[3]) == REASON
    assert back.failed[3].endswith("end\ufffd[31m\ufffd")


def test_weights_are_capped_as_the_sum_does() -> None:
    _, ((_, reply), *_) = model()
    answer = Answer((0,), replies=((0, replace(reply, weight=100.0)),))
    back = read_answer(through(answer_message(answer, run="r", request=1, most=8.0)))
    assert back.replies[0][1].weight == 8.0


def test_what_cannot_travel_is_said() -> None:
    _, made = model()
    other = Reply(Update.of({"v": np.ones(2, "f4")}))
    for answer, match in (
        (Answer((0,), 3.5), "type float cannot travel"),
        (Answer((0, 1), replies=(made[0], (1, other))), "other leaves"),
        (Answer((0,), replies=((0, replace(other, metrics={"x": "text"})),)), "a metric is a number"),
    ):
        with pytest.raises(MisuseError, match=match):
            answer_message(answer, run="r", request=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"clients": "1"}, "clients"),
        ({"used": [1, 2, 3]}, "last used round"),
        ({"want": "steal"}, "want"),
        ({"key": 2.5}, "key"),
        ({"points": {"exponents": [1]}}, "points"),
        (
            {"points": {"exponents": [1], "max_weight": 1.0, "cohort": 1, "wide": False, "tables": {}}},
            "binary points",
        ),
        (
            {"points": {"exponents": [1, 9999], "max_weight": 1.0, "cohort": 1, "wide": False, "tables": {}}},
            "within",
        ),
        (
            {"points": {"exponents": [1, 1], "max_weight": -1.0, "cohort": 1, "wide": False, "tables": {}}},
            "positive",
        ),
    ],
)
def test_an_ask_that_is_none_is_refused(change: dict[str, Any], match: str) -> None:
    params, _ = model()
    head = ask_head(Task(0, Rng(1), (1,), (-1,), params))
    with pytest.raises(CodecError, match=match):
        task_of({**head, **change}, params)
    with pytest.raises(CodecError):
        task_of({}, params)


def test_a_message_of_another_kind_is_refused() -> None:
    params, _ = model()
    with pytest.raises(CodecError, match="answer"):
        read_answer(params_message(params))
    with pytest.raises(CodecError, match="params"):
        params_of(Message("answer"))
    assert limits(5).elements == 5
