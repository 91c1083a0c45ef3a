"""The law of the chain: hash of row n = SHA-256(hash of row n-1, row n in its one form)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .plain import canonical

GENESIS = "0" * 64
_FIELDS = ("seq", "at", "kind", "run", "node", "actor", "body")


def link(before: str, row: Mapping[str, Any]) -> str:
    """The hash of an event, 64 hex digits, after the event whose hash is `before`."""
    text = before + canonical([row[name] for name in _FIELDS])
    return hashlib.sha256(text.encode("ascii")).hexdigest()
