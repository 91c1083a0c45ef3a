"""The auditor's view of recorded messages: the model's shapes and no rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atoll.core.edge import Answer
from atoll.core.errors import ProtocolError
from atoll.core.update import Rows, Update
from atoll.wire.body import answer_message, ask_head, params_message
from atoll.wire.codec import Message
from atoll.wire.shapes import only_model
from tests.gate.answers import ROUNDS, RUN, Round, forged, opened


@pytest.mark.parametrize("kind", [k for k in ROUNDS if "sparse" not in k])
def test_what_a_round_sends_is_the_model(kind: str) -> None:
    asked = Round(**ROUNDS[kind])
    failed = answer_message(Answer((), None, {1: "late"}), run=RUN, request=1)
    for message in (
        params_message(asked.params),
        Message("ask", ask_head(asked.task)),
        asked.message(),
        failed,
    ):
        only_model(message, [asked.layout])


ROWS = np.ones((500, 7), "f4")


@pytest.mark.parametrize(
    ("kind", "arrays"),
    [
        ("raw", {"rows": ROWS}),
        ("raw", {"9": ROWS}),
        ("raw", {"0": ROWS}),
        ("raw", {"0": ROWS.reshape(-1)}),
        ("raw", {"0.0.0": np.ones((500, 280), "u1")}),
        ("raw", {"0.ids.0": np.arange(500)}),
        ("sum", {"0.0.0": np.ones((9, 280), "u1")}),
        ("sum", {"0.0.0": ROWS}),
        ("sum", {"0.0.3": np.ones((1, 1), "u1")}),
        ("sum", {"0.2.0": np.ones((1, 280), "u1")}),
        ("none", {"rows": ROWS}),
    ],
)
def test_planted_rows_are_found(kind: str, arrays: dict[str, Any]) -> None:
    asked = Round("raw" if kind == "none" else kind)
    message = asked.message()
    if kind == "none":
        message = answer_message(Answer((), None, {1: "late"}), run=RUN, request=1)
    with pytest.raises(ProtocolError):
        only_model(forged(message, **arrays), [asked.layout])


def test_an_update_of_anything_else_is_found() -> None:
    asked = Round()
    said = opened(asked.message())
    said.leaves.append(("rows", [500, 7]))
    for message in (
        params_message(Update.of({"rows": ROWS})),
        Message("params", {}, {"params": asked.params, "more": ROWS}),
        Message("params", {}, {"params": Update.of({**asked.params, "t": Rows(np.arange(500), ROWS)})}),
        Message("log", {}, {"rows": ROWS}),
        forged(asked.message(), said),
    ):
        with pytest.raises(ProtocolError):
            only_model(message, [asked.layout])
