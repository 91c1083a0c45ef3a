"""Signed models: nobody on the way can give another model or an older one.

    {"manifest": {federation, run, name, version, sha256, created, takes_back, order?},
     "chain": PEM of the coordinator that signed, "signature": base64}

Versions of a name only rise. A roll-back is an order of its own: it says up to which version it takes
back, and holds for clients between the two; later versions are above that. Who keeps count therefore
keeps `newest(manifest)`, and a roll-back that is shown again later has no effect.

A manifest with an order (orders.py) says how a version is rolled out. Several may name the same version; that
their numbers rise is kept by whoever obeys them (serve/rollout.py).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ..core.errors import MisuseError, ProtocolError
from .certificate import PrivateKey, member_of, sign, verify
from .orders import Order

LONGEST = 128 * 1024  # bytes
_PURPOSE = "atoll model"
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    federation: _Text
    run: _Text
    name: _Text
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: float
    takes_back: _Count = 0
    order: Order | msgspec.UnsetType = msgspec.UNSET  # so that a manifest without one has no such field


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    manifest: _Manifest
    chain: str
    signature: str


def sign_model(key: PrivateKey, chain: bytes, manifest: Mapping[str, Any]) -> bytes:
    """The signed manifest as JSON, at most 128 KiB.

    `manifest`: federation, run, name: text; version: from 1; sha256: 64 hex digits; created: Unix seconds;
    takes_back: only in a roll-back order, the newest version it takes back; order: the fields of an Order,
    where it is rolled out in stages. Raises MisuseError.
    """
    try:
        checked = msgspec.convert(dict(manifest), _Manifest)
    except msgspec.ValidationError as error:
        raise MisuseError(f"this is no model manifest: {error}") from None
    if checked.federation != member_of(chain).federation:
        raise MisuseError("the manifest names another federation than the certificate that signs it")
    signature = sign(key, _canonical(checked), purpose=_PURPOSE)
    return msgspec.json.encode(_Signed(checked, chain.decode(), b64encode(signature).decode()))


def open_model(data: bytes, roots: bytes, *, now: float | None, above: int = 0) -> dict[str, Any]:
    """The manifest, signed by a coordinator of its federation and newer than version `above`; one with an
    order may name that version again.

    `now`: Unix seconds; None to judge the certificate by the manifest's own date, for a model that was
    accepted once and is served again after its signer's certificate has ended. Raises ProtocolError.
    """
    if len(data) > LONGEST:
        raise ProtocolError(f"a signed model has at most {LONGEST} bytes, and this has {len(data)}")
    try:
        signed = msgspec.json.decode(data, type=_Signed)
        signature = b64decode(signed.signature, validate=True)
    except (msgspec.DecodeError, ValueError) as error:
        raise ProtocolError(f"this is no signed model: {error}") from None
    manifest = signed.manifest
    when = manifest.created if now is None else now
    signer = verify(signed.chain.encode(), roots, _canonical(manifest), signature, now=when, purpose=_PURPOSE)
    if signer.role != "coordinator" or signer.federation != manifest.federation:
        raise ProtocolError(f"{signer.uri} may not sign models of {manifest.federation}: a coordinator does")
    again = manifest.order is not msgspec.UNSET and manifest.version == above
    if not (manifest.version > above or above <= manifest.takes_back or again):
        raise ProtocolError(
            f"model {manifest.name} came as version {manifest.version} and is at {above} here: it only rises"
        )
    return msgspec.to_builtins(manifest)  # type: ignore[no-any-return]


def newest(manifest: Mapping[str, Any]) -> int:
    """What `above` is after this one was accepted."""
    return max(int(manifest["version"]), int(manifest["takes_back"]))


def _canonical(manifest: _Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")


__all__ = ["newest", "open_model", "sign_model"]
