"""Values as text in one form, and text any database can hold."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ...core.errors import MisuseError

_write = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only; floats read back to the same bits.

    Tuples come back as lists and keys as text. Raises MisuseError for what JSON cannot hold.
    """
    try:
        return _write(value)
    except (TypeError, ValueError) as error:
        raise MisuseError(f"the store keeps JSON values: numbers, text, lists, tables ({error})") from None


def parsed(text: str) -> Any:
    """What `canonical` wrote."""
    return json.loads(text)


def digest(text: str) -> str:
    """SHA-256 of a text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def clean(text: str, most: int = 65536) -> str:
    """Somebody else's words, cut to `most` characters; NUL and lone surrogates, which databases
    refuse, become question marks.
    """
    text = text[:most]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
