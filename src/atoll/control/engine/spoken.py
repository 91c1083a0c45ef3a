"""What a client and its process that learns say to each other: records, and an error that both know.

Apart from workplace.py, since that process has no event loop and needs none of what one loads.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...core.errors import StateError
from ..settings import Client


class Spoiled(StateError):  # noqa: N818  it says what happened
    """The model's file is not what was fetched, as a power cut leaves it: fetch it again."""


class Begin(msgspec.Struct):
    """What the process is told first: a client's settings, and the key of its files."""

    settings: Client
    key: bytes


class Order(msgspec.Struct, omit_defaults=True):
    """Answer `head` with the model in files[0] into files[1]; without a head, make files[2] of files[0] and
    the delta files[1]. `calibrate`: instead, make files[1] of the ONNX file files[0], on this data set.
    `tune`: instead, train the model in files[0] on the rows in files[1] into files[2].
    """

    files: list[str]
    head: dict[str, Any] | None = None
    sound: bool = False
    roots: bytes = b""
    federation: str = ""
    calibrate: str = ""
    tune: dict[str, Any] | None = None


class Said(msgspec.Struct, omit_defaults=True):
    """Done, or the error: its class and words. `about`: what its rows are, of the first of a process; what a
    fine-tune took.
    """

    about: dict[str, Any] = {}
    kind: str = ""
    text: str = ""
