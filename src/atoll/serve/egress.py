"""What may leave a node for a larger model (joint.py), as values: read where nothing else is loaded."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..privacy.hazmat.suite import Crypto

FILES = ("roots", "ca", "certificate", "key", "token_file", "head")  # paths


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may leave a node, to whom, and when. Files are paths.

    `send`: "nothing", "features" or "sample". `above`: URLs of upstream services, the preferred first, https
    but on this machine. `readers`: whose eyes what leaves is for: "edge", which passes nothing on; "both", an
    edge may ask who is above it; "coordinator", any edge in between carries it sealed.
    `roots`: PEM of the federation's roots, which the upstream's key must lead to. `ca`: PEM that vouches for
    its TLS, `roots` without. `certificate`, `key`: what this node shows, `token_file`: what it brings. A
    member of a federation has roots, certificate and key, and says none of them; nor `above`, to ask its
    parents.
    `threshold`: doubt from which a row goes up, in [0, 1], see `calibrate`; `measure`: "margin" or
    "entropy". `share`: the most of all rows that may go up. `limit`: seconds until the local answer stands.
    `model`: what the larger one is called there. `head`: an ONNX file, the larger model's first layers, for
    "features". `crypto`: the suite.
    """

    send: Literal["nothing", "features", "sample"] = "nothing"
    above: tuple[str, ...] = ()
    readers: Literal["", "edge", "coordinator", "both"] = ""
    roots: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token_file: str = ""
    threshold: float = 1.0
    measure: Literal["margin", "entropy"] = "margin"
    share: float = 0.15
    limit: float = 0.5
    model: str = ""
    head: str = ""
    crypto: Crypto = "intl"

    def __post_init__(self) -> None:
        for name, right, wanted in (
            ("threshold", 0 <= self.threshold <= 1, "in [0, 1]"),
            ("share", 0 < self.share <= 1, "in (0, 1]"),
            ("limit", self.limit > 0, "above 0 seconds"),
            ("readers", self.send == "nothing" or bool(self.readers), '"edge", "coordinator" or "both"'),
            ("head", (self.send == "features") == bool(self.head), 'an ONNX file where send = "features"'),
        ):
            if not right:
                raise ValueError(f"{name} is {wanted}")
