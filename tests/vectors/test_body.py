"""Golden bytes of an ask and of answers, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.core.aggregate import Partial, Points, Reply
from atoll.core.edge import Answer, Task
from atoll.core.metrics import from_plain
from atoll.core.rng import Rng
from atoll.core.update import Layout, Leaf, Rows, Update
from atoll.wire.body import answer_message, ask_head, read_answer, task_of
from atoll.wire.codec import Message, decode, encode
from atoll.wire.coded import Code, Coded, Drawn
from tests.laws.test_body import same

VECTORS = json.loads(Path(__file__).with_name("body.json").read_text(encoding="utf-8"))


def layout(leaves: list[Any]) -> Layout:
    return Layout(tuple(Leaf(name, tuple(shape)) for name, shape in leaves))


def metrics(found: dict[str, Any]) -> dict[str, Any]:
    return {name: x if isinstance(x, float) else from_plain(x) for name, x in found.items()}


def task(t: dict[str, Any]) -> Task:
    """The task that a vector describes."""
    p = t["points"]
    points = Points(
        layout(p["leaves"]), tuple(p["exponents"]), p["max_weight"], p["cohort"], p["wide"], p["tables"]
    )
    params = Update(layout(t["params"]["leaves"]), np.array(t["params"]["buffer"], "<f4"))
    key = Rng(int(t["key"], 16))
    return Task(
        t["round"], key, tuple(t["clients"]), tuple(t["used"]), params, points, tuple(t["cohort"]), t["want"]
    )


def answer(a: dict[str, Any]) -> Answer:
    """The answer that a vector describes."""
    failed = dict(a.get("failed", []))
    clients, sent = tuple(a["clients"]), a.get("sent", 0)
    if "sites" in a:
        return Answer(clients, {c: metrics(found) for c, found in a["sites"]}, failed, sent)
    leaves = layout(a.get("leaves", []))
    if "sum" in a:
        s = a["sum"]
        sums = np.array(s["sums"], "<u8" if s["bits"] else "<i8")
        rows = {n: Rows(np.array(r["ids"], "i8"), np.array(r["values"], "i8")) for n, r in s["rows"].items()}
        weight = int(s["weight"], 16)
        return Answer(
            clients,
            Partial(leaves, sums, weight, s["count"], metrics(s["metrics"]), s["bits"], rows),
            failed,
            sent,
        )
    replies = []
    for r in a.get("replies", []):
        rows = {n: Rows(np.array(x["ids"], "i8"), np.array(x["values"], "<f4")) for n, x in r["rows"].items()}
        update = Update(leaves, np.array(r["buffer"], r["dtype"]), bits=r["bits"], rows=rows)
        if "code" in r:
            update = Coded(leaves, code(r["code"], leaves.size, r["dtype"]))
            assert update.buffer.tolist() == r["buffer"]
        replies.append((r["client"], Reply(update, r["weight"], metrics(r["metrics"]))))
    return Answer(clients, None, failed, sent, tuple(replies))


def code(c: dict[str, Any], size: int, dtype: str) -> Code:
    """The compact form that a vector describes."""
    where = c["where"]
    if isinstance(where, dict):
        where = Drawn(where["k"], int(where["key"], 16))
    elif where is not None:
        where = np.array(where, np.int64)
    if not c["bits"]:
        return Code(size, np.dtype(dtype), where, np.array(c["what"], dtype))
    what, scales = np.array(c["what"], np.uint8), np.array(c["scales"], "<f4")
    return Code(size, np.dtype(dtype), where, what, c["bits"], scales)


@pytest.mark.parametrize("case", VECTORS["asks"], ids=lambda c: c["name"])
def test_golden_asks(case: dict[str, Any]) -> None:
    asked = task(case["task"])
    assert b"".join(encode(Message("ask", ask_head(asked)))).hex() == case["bytes"]
    assert task_of(decode(bytes.fromhex(case["bytes"])).head, asked.params) == asked


@pytest.mark.parametrize("case", VECTORS["answers"], ids=lambda c: c["name"])
def test_golden_answers(case: dict[str, Any]) -> None:
    said = answer(case["answer"])
    made = answer_message(said, run=case["run"], request=case["request"])
    assert b"".join(encode(made)).hex() == case["bytes"]
    assert same(read_answer(decode(bytes.fromhex(case["bytes"])))) == same(said)
