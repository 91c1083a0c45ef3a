"""Signed models: only a coordinator's, only newer ones, nothing changed on the way."""

import json

import pytest

from atoll.core.errors import MisuseError, ProtocolError
from atoll.privacy.keys import Authority, new_key, newest, open_model, request, sign, sign_model

NOW = 1_800_000_000.0
OURS = Authority.new("lagoon", now=NOW)
KEY = new_key()
CSR = request(KEY, "lagoon", "client", "any")
CHAIN = OURS.sign(CSR, role="coordinator", name="hub", now=NOW)
MANIFEST = {
    "federation": "lagoon",
    "run": "r0001",
    "name": "heart",
    "version": 5,
    "sha256": "ab" * 32,
    "created": NOW,
}


def test_a_signed_model_opens_as_it_was_signed() -> None:
    manifest = open_model(sign_model(KEY, CHAIN, MANIFEST), OURS.root, now=NOW, above=4)
    assert manifest == MANIFEST | {"takes_back": 0}
    assert newest(manifest) == 5


@pytest.mark.parametrize("above", [5, 6, 100])
def test_an_older_or_the_same_version_is_refused(above: int) -> None:
    old = sign_model(KEY, CHAIN, MANIFEST)
    assert open_model(old, OURS.root, now=NOW)  # control: it is genuine
    with pytest.raises(ProtocolError, match=rf"version 5 and is at {above}"):
        open_model(old, OURS.root, now=NOW, above=above)


def test_a_roll_back_is_an_order_that_cannot_be_repeated_later() -> None:
    order = sign_model(KEY, CHAIN, MANIFEST | {"version": 3, "takes_back": 5})
    manifest = open_model(order, OURS.root, now=NOW, above=5)
    assert manifest["version"] == 3 and newest(manifest) == 5
    taken_back = sign_model(KEY, CHAIN, MANIFEST)
    with pytest.raises(ProtocolError, match="it only rises"):
        open_model(taken_back, OURS.root, now=NOW, above=newest(manifest))
    after = open_model(sign_model(KEY, CHAIN, MANIFEST | {"version": 6}), OURS.root, now=NOW, above=5)
    with pytest.raises(ProtocolError, match="it only rises"):
        open_model(order, OURS.root, now=NOW, above=newest(after))


@pytest.mark.parametrize("role", ["client", "edge", "operator"])
def test_only_a_coordinator_signs(role: str) -> None:
    chain = OURS.sign(CSR, role=role, name="hub", now=NOW)
    forged = sign_model(KEY, chain, MANIFEST)
    with pytest.raises(ProtocolError, match="may not sign"):
        open_model(forged, OURS.root, now=NOW)


def test_a_sister_federation_cannot_sign_for_this_one() -> None:
    sister = Authority("reef", OURS.root, b"", OURS._key).sign(CSR, role="coordinator", name="hub", now=NOW)
    with pytest.raises(MisuseError, match="another federation"):
        sign_model(KEY, sister, MANIFEST)
    forged = json.loads(sign_model(KEY, CHAIN, MANIFEST)) | {"chain": sister.decode()}
    with pytest.raises(ProtocolError, match="may not sign models of lagoon"):
        open_model(json.dumps(forged).encode(), OURS.root, now=NOW)


@pytest.mark.parametrize(
    ("field", "value"), [("version", 9), ("sha256", "cd" * 32), ("name", "lung"), ("takes_back", 9)]
)
def test_a_changed_field_is_seen(field: str, value: object) -> None:
    signed = json.loads(sign_model(KEY, CHAIN, MANIFEST))
    signed["manifest"][field] = value
    with pytest.raises(ProtocolError, match="not signed by"):
        open_model(json.dumps(signed).encode(), OURS.root, now=NOW)


def test_a_signature_for_another_purpose_is_refused() -> None:
    signed = json.loads(sign_model(KEY, CHAIN, MANIFEST))
    from base64 import b64encode

    plain = json.dumps(signed["manifest"], sort_keys=True, separators=(",", ":")).encode()
    signed["signature"] = b64encode(sign(KEY, plain)).decode()
    with pytest.raises(ProtocolError, match="not signed by"):
        open_model(json.dumps(signed).encode(), OURS.root, now=NOW)


def test_accepted_once_it_is_good_after_its_signers_certificate() -> None:
    signed = sign_model(KEY, CHAIN, MANIFEST)
    late = NOW + 72 * 3600
    with pytest.raises(ProtocolError, match="ended on"):
        open_model(signed, OURS.root, now=late)
    assert open_model(signed, OURS.root, now=None)["version"] == 5


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 10_000, b"x" * 200_000, b'{"manifest": 1}', b"\xff\xfe"])
def test_what_is_no_signed_model_is_told(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_model(data, OURS.root, now=NOW)


@pytest.mark.parametrize("change", [{"version": 0}, {"sha256": "ab"}, {"created": None}, {"more": 1}])
def test_a_manifest_has_one_form(change: dict[str, object]) -> None:
    with pytest.raises(MisuseError, match="no model manifest"):
        sign_model(KEY, CHAIN, MANIFEST | change)
