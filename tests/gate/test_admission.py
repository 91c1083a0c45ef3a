"""What the gate lets in: every honest answer, and nothing else; each rule with what it keeps out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.control.gate.want import Table, Want, ring_bits, want
from atoll.core.aggregate import Sum, fold
from atoll.core.edge import Answer
from atoll.core.errors import MisuseError, ProtocolError
from atoll.core.metrics import Mean, Quantiles, to_plain
from atoll.core.transform import chain, transform
from atoll.core.update import Update
from atoll.learn.ring import ring
from atoll.learn.server import mean
from atoll.privacy import dp
from atoll.privacy.dp import clip
from atoll.wire.body import answer_message, answer_of, read_answer
from atoll.wire.codec import Message
from atoll.wire.packed import pack
from atoll.wire.values import Part, Said, Values
from tests.gate.answers import CLIENTS, REQUEST, ROUNDS, RUN, Round, checked, forged, opened, verdict

HONEST = ROUNDS.items()


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "level"])
@pytest.mark.parametrize(("name", "kind"), HONEST, ids=ROUNDS)
def test_every_honest_answer_is_let_in(name: str, kind: dict[str, Any], packs: bool, tmp_path) -> None:
    from tests.laws.test_body import same

    asked = Round(**kind)
    for clients in (CLIENTS, CLIENTS[1:3]):
        message, path = asked.message(clients, packs=packs), tmp_path / "buffer"
        assert verdict(asked.want(clients), message, path).refused == ""
        said = verdict(asked.want(), message, path)
        assert said.refused == ""
        assert said.values == opened(message)
        assert path.stat().st_size <= asked.want().size
        assert same(answer_of(checked(message, path), path)) == same(asked.answer(clients))


@pytest.mark.parametrize("kind", ["raw", "sum", "sites"])
def test_an_answer_that_only_says_who_failed_is_let_in(kind: str, tmp_path) -> None:
    asked = Round(**ROUNDS[kind])
    message = answer_message(Answer((), None, {2: "Traceback:\n  boom"}), run=RUN, request=REQUEST)
    assert verdict(asked.want(), message, tmp_path / "b").refused == ""


Change = Callable[[Values], None]


def metric(name: str, plain: Any) -> Change:
    return lambda v: v.replies[0].metrics.update({name: plain})


def reply(**fields: Any) -> Change:
    def change(v: Values) -> None:
        for name, value in fields.items():
            setattr(v.replies[0], name, value)

    return change


def values(**fields: Any) -> Change:
    def change(v: Values) -> None:
        for name, value in fields.items():
            setattr(v, name, value)

    return change


LEAVES = [("w", [40, 7]), ("b", [7]), ("s", [])]
RAW: list[tuple[str, Change, str]] = [
    ("weight nan", reply(weight=math.nan), "NaN"),
    ("weight inf", reply(weight=math.inf), "NaN or an infinity"),
    ("weight negative", reply(weight=-1.0), "weight"),
    ("weight huge", reply(weight=64.0000001), "weight"),
    ("client not asked", values(clients=[1, 2, 3, 9]), "not asked"),
    ("client twice", values(clients=[1, 2, 3, 3]), "twice"),
    ("client failed and not", values(failed=[(1, "boo")]), "twice"),
    ("failed not asked", values(clients=[], replies=[], form="none", failed=[(9, "boo")]), "not asked"),
    ("reply of another", reply(client=3), "what the form"),
    ("fewer replies", lambda v: v.replies.pop(), "what the form"),
    ("a sum besides", values(parts=[Part(0, (1, 0), 1, {}, 1, None, [])]), "what the form"),
    ("a table besides", values(sites=[(1, {})]), "what the form"),
    ("nothing, with replies", values(form="none"), "what the form"),
    ("bytes negative", values(sent=-1), "bytes"),
    ("bytes beyond belief", values(sent=2**50), "bytes"),
    ("escape in a reason", values(clients=[1, 2, 3], failed=[(4, "\x1b[2J")]), "control"),
    ("endless reason", values(clients=[1, 2, 3], failed=[(4, "x" * 9000)]), "too long"),
    ("leaf missing", values(leaves=LEAVES[:2]), "'s' \\[\\], got none"),
    (
        "leaf too many",
        values(leaves=[*LEAVES, ("rows", [500, 30])]),
        "expected none, got 'rows' \\[500, 30\\]",
    ),
    ("leaf renamed", values(leaves=[("v", [40, 7]), *LEAVES[1:]]), "expected 'w'.*, got 'v'"),
    ("leaf transposed", values(leaves=[("w", [7, 40]), *LEAVES[1:]]), "got 'w' \\[7, 40\\]"),
    ("leaves in another order", values(leaves=LEAVES[::-1]), "leaves are not"),
    ("leaf negative", values(leaves=[("w", [-40, -7]), *LEAVES[1:]]), "leaves are not"),
    ("table nobody sums", values(tables=["t"]), "sparse rows"),
    ("ring", reply(bits=20), "ring"),
    ("many metrics", lambda v: v.replies[0].metrics.update({str(i): 0.1 for i in range(64)}), "at most 64"),
    ("metric nan", metric("loss", math.nan), "NaN"),
    ("metric of no kind", metric("loss", ["pickle", "x"]), "not one that merges"),
    ("metric is text", metric("loss", "0.5"), "not one that merges"),
    ("metric is a number too whole", metric("loss", 7), "not one that merges"),
    ("metric malformed", metric("loss", ["mean", [1], [-5], 0]), "not one that merges"),
    ("metric nan inside", metric("q", ["minmax", [math.nan, 1.0], [2], 0]), "NaN"),
    ("metric overwhelming", metric("loss", to_plain(Mean(1.0, 2.0**60))), "weighs more"),
    ("metric's name", metric("lo\x00ss", 0.5), "control characters"),
]


@pytest.mark.parametrize(("name", "change", "match"), RAW, ids=[name for name, *_ in RAW])
def test_plain_values_that_do_not_fit_are_refused(name: str, change: Change, match: str, tmp_path) -> None:
    asked = Round()
    message = asked.message()
    said = opened(message)
    change(said)
    refused(asked.want(), forged(message, said), match, tmp_path)


def test_an_update_that_was_not_clipped_is_refused(tmp_path) -> None:
    asked = Round()
    longest = max(float(np.linalg.norm(r.update.buffer.astype("f8"))) for _, r in asked.replies)
    assert verdict(asked.want(norm=longest), asked.message(), tmp_path / "a").refused == ""
    refused(asked.want(norm=longest * 0.999), asked.message(), "longer than", tmp_path)
    refused(asked.want(metrics=0), asked.message(), "at most 0", tmp_path)


def test_how_long_updates_may_be_follows_from_the_chain() -> None:
    assert dp.longest(at.chain(at.mean(), at.clip(2.0))) == 2.0
    assert dp.longest(at.chain(at.mean(), at.topk(0.1), at.clip(2.0), at.clip(1.0))) == 1.0
    assert dp.longest(at.chain(at.mean())) is None
    tenfold = transform("tenfold", lambda u, s, c: (u.scale(10.0), s))
    assert dp.longest(at.chain(at.mean(), at.clip(2.0), tenfold)) is None


def refused(asked: Want, message: Message, match: str, tmp_path) -> None:
    said = verdict(asked, message, tmp_path / "buffer")
    assert said.values is None
    assert re.search(match, said.refused), said.refused
    assert not re.search(r"0\.\d|\d{6}", said.refused)  # no values in a reason


def first(x: np.ndarray, value: Any) -> np.ndarray:
    changed = x.copy()
    changed.reshape(-1)[3] = value
    return changed


def scaled(code: np.ndarray, scale: float) -> np.ndarray:
    changed = code.copy()
    changed[36:40] = np.array([scale], "<f4").view("u1")  # after the head and the lengths of its stream
    return changed


ARRAYS: list[tuple[str, str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("raw", "nan", lambda a: {"1": first(a["1"], np.nan)}, "client 2's leaf 'w' holds a NaN"),
    ("raw", "inf", lambda a: {"1": first(a["1"], -np.inf)}, "infinity"),
    ("raw", "huge", lambda a: {"1": first(a["1"], 1e9)}, "range"),
    ("raw", "signed zero counts as small", lambda a: {"1": first(a["1"], 3e38)}, "range"),
    ("raw", "whole numbers", lambda a: {"1": a["1"].astype("i4")}, "type"),
    ("raw", "bytes", lambda a: {"1": a["1"].view("u1")}, "head of a compact"),
    ("raw int8", "another size", lambda a: {"1": a["1"].copy()[:-9]}, "another length"),
    ("raw int8", "two axes", lambda a: {"1": a["1"][None]}, "numbers of the type"),
    ("raw int8", "a NaN scale", lambda a: {"1": scaled(a["1"], np.nan)}, "scales from 0"),
    ("raw int8", "beyond the range", lambda a: {"1": scaled(a["1"], 1e9)}, "client 2's leaf 'w' is beyond"),
    ("raw", "one short", lambda a: {"1": a["1"][:-1]}, "numbers of the type"),
    ("raw", "one over", lambda a: {"1": np.append(a["1"], a["1"][:1])}, "numbers of the type"),
    ("raw", "with rows", lambda a: {"1": np.ones((500, 288), "f4")}, "numbers of the type"),
    ("raw", "in another shape", lambda a: {"1": a["1"].reshape(2, -1)}, "numbers of the type"),
    ("raw", "an update", lambda a: {"1": Update.of({"w": a["1"]})}, "plain arrays"),
    ("raw", "missing", lambda a: {"1": None}, "missing"),
    ("raw", "rows besides", lambda a: {"rows": np.ones((500, 30), "f4")}, "1 arrays that the model"),
    ("raw", "no values", lambda a: {"values": None}, "plain values"),
    ("raw", "values as numbers", lambda a: {"values": np.ones(4)}, "plain values"),
    ("raw wide", "nan", lambda a: {"0": first(a["0"], np.nan)}, "NaN"),
    ("raw ring", "out of the ring", lambda a: {"0": first(a["0"][::-1], 255)[::-1]}, "out of the ring"),
    ("raw ring", "in more bytes", lambda a: {"0": np.vstack([a["0"], a["0"][:1]])}, "packed"),
    ("raw ring", "real", lambda a: {"0": np.ones(288, "f4")}, "packed"),
    ("raw sparse", "beyond the table", lambda a: {"0.ids.0": first(np.arange(6), 50)}, "below 50"),
    ("raw sparse", "negative id", lambda a: {"0.ids.0": np.arange(-1, 5)}, "increasing ids"),
    ("raw sparse", "id twice", lambda a: {"0.ids.0": np.zeros(6, "i8")}, "increasing ids"),
    ("raw sparse", "ids of reals", lambda a: {"0.ids.0": np.arange(6.0)}, "type <i8"),
    ("raw sparse", "wider rows", lambda a: {"0.rows.0": np.ones((6, 30), "f4")}, "rows of 3"),
    ("raw sparse", "more rows", lambda a: {"0.rows.0": np.ones((600, 3), "f4")}, "rows of 3"),
    ("raw sparse", "whole rows", lambda a: {"0.rows.0": np.ones((6, 3), "i8")}, "real numbers"),
    ("raw sparse", "nan in rows", lambda a: {"0.rows.0": np.full((6, 3), np.nan, "f4")}, "NaN"),
    ("raw sparse", "huge rows", lambda a: {"0.rows.0": np.full((6, 3), 1e30, "f4")}, "range"),
    ("raw sparse", "ids without rows", lambda a: {"0.rows.0": None}, "missing"),
    ("sum", "beyond its clients", lambda a: {"0.0.0": pack(np.full(280, 2**62))}, "can have added"),
    ("sum", "beyond, downwards", lambda a: {"0.0.1": pack(np.full(7, -(2**63)))}, "can have added"),
    ("sum", "too wide", lambda a: {"0.0.1": pack(np.ones(7, "i8"), 2)}, "wider than it needs"),
    ("sum", "nine bytes", lambda a: {"0.0.1": np.ones((9, 7), "u1")}, "packed integers"),
    ("sum", "with rows", lambda a: {"0.0.0": np.ones((8, 2800), "u1")}, "280 packed"),
    ("sum", "reals", lambda a: {"0.0.0": np.ones((8, 280))}, "280 packed"),
    ("sum", "another limb", lambda a: {"0.1.0": a["0.0.0"]}, "arrays that the model"),
    ("sum", "no leaf", lambda a: {"0.0.2": None}, "missing"),
    ("sum wide", "fine bits beyond", lambda a: {"0.1.1": pack(np.full(7, 2**45))}, "can have added"),
    ("sum ring", "out of the ring", lambda a: {"0.0.0": pack(np.full(280, 1 << 20, "u8"))}, "can have added"),
    (
        "sum sparse",
        "rows beyond",
        lambda a: {"0.rows.0": pack(np.full(a["0.ids.0"].size * 3, 2**62))},
        "added",
    ),
    ("sum sparse", "ids", lambda a: {"0.ids.0": a["0.ids.0"][::-1]}, "increasing"),
    ("gather", "nan", lambda a: {"2": first(a["2"], np.nan)}, "NaN"),
    ("buckets", "beyond", lambda a: {"1.0.0": pack(np.full(280, 2**62))}, "can have added"),
]


@pytest.mark.parametrize(("kind", "name", "change", "match"), ARRAYS, ids=[f"{k}-{n}" for k, n, *_ in ARRAYS])
def test_arrays_that_do_not_fit_are_refused(kind: str, name: str, change: Any, match: str, tmp_path) -> None:
    asked = Round(**ROUNDS[kind])
    message = asked.message()
    refused(asked.want(), forged(message, **change(dict(message.arrays))), match, tmp_path)


def part(k: int = 0, **fields: Any) -> Change:
    def change(v: Values) -> None:
        for name, value in fields.items():
            setattr(v.parts[k], name, value)

    return change


PARTS: list[tuple[str, str, Change, str]] = [
    ("sum", "weight of five clients", part(weight=(4 * 64, 1)), "weighs more than 4"),
    ("sum", "weight below 0", part(weight=(-1, 0)), "at least 0"),
    ("sum", "weight in odd units", part(weight=(0, 2**40)), "at least 0"),
    ("sum", "counts more than are in it", part(count=5), "contributions"),
    ("sum", "counts nobody", part(count=0), "contributions"),
    ("sum", "weighs nothing", part(weight=(0, 0)), "contributions"),
    ("sum", "count below 0", part(count=-1), "contributions"),
    ("sum", "another ring", part(bits=20), "ring or precision"),
    ("sum", "another precision", part(limbs=2), "ring or precision"),
    ("sum", "two sums", lambda v: v.parts.append(v.parts[0]), "what the form"),
    ("sum", "no sum", values(parts=[]), "what the form"),
    ("sum", "a bucket", part(place=1), "what the form"),
    ("sum", "replies besides", values(replies=[Said(1, 1.0, {})]), "what the form"),
    ("sum", "of clients nobody asked", values(clients=[1, 2, 3, 7]), "not asked"),
    (
        "sum",
        "metric overwhelming",
        lambda v: v.parts[0].metrics.update(x=to_plain(Mean(1, 2.0**60))),
        "weighs",
    ),
    ("sum", "other leaves", values(leaves=[("w", [280]), *LEAVES[1:]]), "leaves are not"),
    ("sum", "no leaves", values(leaves=[]), "leaves are not"),
    ("sum sparse", "a table twice", part(widths=[(0, 3), (0, 3)]), "twice"),
    ("sum sparse", "a wider table", part(widths=[(0, 4)]), "another width"),
    ("sum sparse", "no such table", part(widths=[(1, 3)]), "another width"),
    ("sum sparse", "a table before the first", part(widths=[(-1, 3)]), "another width"),
    ("buckets", "no such bucket", part(place=2), "what the form"),
    ("buckets", "a bucket twice", lambda v: setattr(v.parts[1], "place", v.parts[0].place), "what the form"),
    ("buckets", "heavier than its clients", part(weight=(3 * 64, 0)), "weighs more than 2"),
    ("buckets", "counts more than fall into it", part(count=3), "contributions"),
    ("sites", "not in it", values(clients=[1, 2, 3]), "what the form"),
    ("sites", "twice", lambda v: v.sites.append(v.sites[0]), "what the form"),
    ("sites", "bare number", lambda v: v.sites[0][1].update(loss=0.5), "not one that merges"),
    ("sum", "bare number", lambda v: v.parts[0].metrics.update(loss=0.5), "not one that merges"),
    ("sites", "metric nan", lambda v: v.sites[0][1].update(loss=math.nan), "NaN"),
    ("sum", "a note besides", lambda v: v.notes.append((1, b"note")), "what the form"),
    ("notes", "not in it", values(clients=[1, 2, 3]), "what the form"),
    ("notes", "twice", lambda v: v.notes.append(v.notes[0]), "what the form"),
    ("notes", "for who was not asked", lambda v: v.notes.append((77, b"note")), "what the form"),
    ("notes", "metrics besides", lambda v: v.sites.append((1, {})), "what the form"),
    ("gather", "negative weight", reply(weight=-1.0), "weight"),
]


@pytest.mark.parametrize(("kind", "name", "change", "match"), PARTS, ids=[f"{k}-{n}" for k, n, *_ in PARTS])
def test_what_an_edge_says_that_cannot_be_is_refused(
    kind: str, name: str, change: Change, match: str, tmp_path
) -> None:
    asked = Round(**ROUNDS[kind])
    message = asked.message()
    said = opened(message)
    change(said)
    refused(asked.want(), forged(message, said), match, tmp_path)


@pytest.mark.parametrize(
    "head",
    [
        {"run": "r0002", "request": REQUEST, "form": "raw"},
        {"run": RUN, "request": REQUEST - 1, "form": "raw"},
        {"run": RUN, "request": REQUEST, "form": "sum"},
        {"run": RUN, "request": REQUEST, "form": "raw", "more": 1},
        {"run": RUN, "form": "raw"},
        {},
    ],
)
def test_an_answer_to_something_else_is_refused(head: dict[str, Any], tmp_path) -> None:
    asked = Round()
    message = asked.message()
    refused(asked.want(), Message("answer", head, message.arrays), "another run or request", tmp_path)
    refused(asked.want(), Message("params", message.head, message.arrays), "kind 'answer'", tmp_path)


def test_a_client_may_not_answer_as_an_edge_nor_evaluate_when_asked_to_train(tmp_path) -> None:
    asked = Round()
    for kind in ("sum", "gather", "buckets", "sites", "notes"):
        refused(asked.want(), Round(**ROUNDS[kind]).message(), "of the form", tmp_path)


def test_metrics_of_other_kinds_may_be_forbidden(tmp_path) -> None:
    asked = Round()
    assert verdict(asked.want(kinds=("mean", "auc")), asked.message(), tmp_path / "b").refused == ""
    refused(asked.want(kinds=("mean",)), asked.message(), "'auc' is a auc: expected", tmp_path)


def test_the_range_is_the_one_the_sum_takes(tmp_path) -> None:
    """Up to the last bit: what the gate lets in, the sum takes; what it refuses, the sum refuses."""
    asked = Round(wide=True)
    at, client = asked.points, asked.replies[0][1]
    edge = at.limit / 2.0 ** at.exponents[0]
    for value in [edge, np.nextafter(edge, 0), np.nextafter(edge, np.inf), -edge, edge * 1.01, edge / 2]:
        buffer = first(client.update.buffer, value)
        made = (1, type(client)(Update(asked.layout, buffer), client.weight))
        message = answer_message(Answer((1,), replies=(made,)), run=RUN, request=REQUEST)
        let_in = not verdict(asked.want(), message, tmp_path / "b").refused
        try:
            Sum(at).lift(*made)
        except ProtocolError:
            assert not let_in
        else:
            assert let_in


def test_a_rule_over_updates_takes_any_finite_number(tmp_path) -> None:
    asked = Round("gather")
    message = asked.message()
    big = forged(message, **{"0": first(message.arrays["0"], 1e30)})
    assert verdict(asked.want(), big, tmp_path / "b").refused == ""


def test_rules_of_ones_own_have_no_partials_that_travel() -> None:
    class Own:
        sees = "sum"

    asked = Round()
    with pytest.raises(MisuseError, match="Own cannot travel"):
        want(asked.task, Own(), member="e", run="r", request=1, edge=True)  # type: ignore[arg-type]
    assert want(asked.task, Own(), member="c", run="r", request=1).form == "raw"  # type: ignore[arg-type]
    assert Table(2, 3, 4) == Table(2, 3, 4)


def test_the_ring_of_a_chain_is_known() -> None:
    assert ring_bits(chain(mean(), clip(1.0))) is None
    assert ring_bits(chain(mean(), clip(1.0), ring(20, largest=1.0, total=8.0))) == 20


def test_control_without_the_gate_they_change_the_model_or_end_the_round(tmp_path) -> None:
    asked = Round("sum")
    honest = asked.rule.finish(fold(asked.rule, asked.replies)).update
    message = asked.message()
    forgery = forged(message, **{"0.0.1": pack(np.full(7, 2**61))})
    moved = asked.rule.finish(read_answer(forgery).partial).update
    assert abs(moved.buffer).max() > 1e3 * abs(honest.buffer).max()

    said = opened(message)
    said.parts[0].weight = (2**40, 0)  # all others count nothing beside it
    assert read_answer(forged(message, said)).partial.weight > 2**70

    raw = Round()
    said = opened(raw.message())
    said.replies[0].weight = -1.0
    bad = read_answer(forged(raw.message(), said))
    with pytest.raises(MisuseError, match="weight"):
        fold(raw.rule, bad.replies)

    stale = answer_message(raw.answer(), run="r0009", request=77)
    assert read_answer(stale).clients == CLIENTS  # nothing in it says that it is old


def test_control_a_sketch_of_all_values_would_pass_unless_kinds_are_named(tmp_path) -> None:
    asked = Round()
    message = asked.message()
    said = opened(message)
    said.replies[0].metrics["column"] = to_plain(Quantiles([63.0, 1.0, 145.0]))
    assert verdict(asked.want(), forged(message, said), tmp_path / "b").refused == ""
    refused(asked.want(kinds=("mean", "auc")), forged(message, said), "quantiles", tmp_path)
