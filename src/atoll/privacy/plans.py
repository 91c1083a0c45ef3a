"""Signed plans: how a network learns comes from this federation's coordinator, and never an older one.

A plan that stands alone, for a node that renews its model by itself, has a manifest as models have
(privacy/models.py): {federation, run, name, version, sha256, created, takes_back}. Within a job the job's own
signature names the plan by its SHA-256, and none of its own is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..core.errors import ProtocolError
from .certificate import PrivateKey
from .models import open_model, sign_model

_PURPOSE = "atoll plan"


def sign_plan(key: PrivateKey, chain: bytes, plan: bytes, manifest: Mapping[str, Any]) -> bytes:
    """The signed manifest of a plan's file; `sha256` is filled in. Raises MisuseError for another form."""
    digest = hashlib.sha256(plan).hexdigest()
    return sign_model(key, chain, {**manifest, "sha256": digest}, purpose=_PURPOSE)


def open_plan(
    signed: bytes, plan: bytes, roots: bytes, *, now: float | None, above: int = 0
) -> dict[str, Any]:
    """The manifest of a plan's bytes, signed by a coordinator of its federation and above version `above`.

    Raises ProtocolError for an unsigned or an older one, or for bytes that the signature does not name.
    `now` as open_model's. The plan itself is looked at by Plan.read.
    """
    manifest = open_model(signed, roots, now=now, above=above, purpose=_PURPOSE)
    if hashlib.sha256(plan).hexdigest() != manifest["sha256"]:
        raise ProtocolError(f"this is not the plan that was signed as {manifest['name']}")
    return manifest
