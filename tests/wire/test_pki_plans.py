"""Signed plans: unsigned, older, another's and a changed one are refused; the control is good."""

from __future__ import annotations

import pytest

from atoll.core.errors import ProtocolError
from atoll.privacy.models import sign_model
from atoll.privacy.plans import open_plan, sign_plan
from tests.serve.plans import FILE
from tests.wire.test_pki_models import CHAIN, KEY, MANIFEST, NOW, OURS

DATA = FILE.read_bytes()
ABOUT = {key: value for key, value in MANIFEST.items() if key != "sha256"}


def test_control_a_signed_plan_is_opened() -> None:
    found = open_plan(sign_plan(KEY, CHAIN, DATA, ABOUT), DATA, OURS.root, now=NOW, above=4)
    assert found["version"] == 5


def test_others_are_refused_with_the_reason() -> None:
    signed = sign_plan(KEY, CHAIN, DATA, ABOUT)
    model = sign_model(KEY, CHAIN, {**MANIFEST})  # good for a model, and for nothing else
    for manifest, data, above, message in (
        (b"{}", DATA, 0, "no signed"),
        (model, DATA, 0, "not signed by"),
        (signed, DATA, 5, "it only rises"),
        (signed, DATA + b"\0", 0, "not the plan that was signed"),
    ):
        with pytest.raises(ProtocolError, match=message):
            open_plan(manifest, data, OURS.root, now=NOW, above=above)
