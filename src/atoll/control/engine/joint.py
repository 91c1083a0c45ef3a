"""Whom a member asks about rows that its models are unsure of (serve/joint.py)."""

from __future__ import annotations

from typing import Any

import msgspec

from ...privacy.keys import Identity
from ...serve import egress
from ...serve.joint import Joint


def asks(joint: egress.Settings, identity: Identity, join: tuple[str, ...]) -> Joint:
    """Whoever the settings name, else the member's own parents over https, recognised by the federation's
    roots; it shows its own certificate. Raises ConfigError where there is none of either.
    """
    folder = identity.folder
    assert folder is not None  # noqa: S101  it was saved when it joined
    files = {"roots": "root.pem", "certificate": "cert.pem", "key": "key.pem"}
    own: dict[str, Any] = {k: str(folder / name) for k, name in files.items() if not getattr(joint, k)}
    if not joint.above:
        own["above"] = tuple(url for url in join or identity.urls if url.startswith("https://"))
    return Joint(msgspec.structs.replace(joint, **own))
