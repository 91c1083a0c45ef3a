"""Values that somebody has signed, as one JSON text that anybody can open who knows the root."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from ..core.errors import ProtocolError
from .certificate import Member, PrivateKey, sign, verify


def sign_values(key: PrivateKey, chain: bytes, values: Mapping[str, Any], purpose: str) -> str:
    """The values, a signature that is good for this purpose only, and the signer's certificates."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    signature = b64encode(sign(key, text.encode(), purpose=purpose)).decode()
    return json.dumps({"values": text, "signature": signature, "chain": chain.decode()})


def open_values(
    signed: Any, roots: bytes, *, purpose: str, when: str, most: int, what: str
) -> tuple[dict[str, Any], Member]:
    """The values and who signed them; certificates must have been good at the moment that value `when` says.

    `most`: characters; `what`: names it for people. Raises ProtocolError for anything else.
    """
    try:
        if len(signed) > most:
            raise ValueError(when)
        outer = json.loads(signed)
        text, chain = str(outer["values"]), str(outer["chain"]).encode()
        signature = b64decode(str(outer["signature"]), validate=True)
        values: dict[str, Any] = json.loads(text)
        moment = float(values[when])
    except (ValueError, LookupError, TypeError):
        raise ProtocolError(f"this is no {what}") from None
    return values, verify(chain, roots, text.encode(), signature, now=moment, purpose=purpose)
