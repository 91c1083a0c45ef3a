"""What a client and its processes that learn and serve say to each other: records, and an error they know.

Apart from workplace.py, since the process that learns has no event loop and needs none of what one loads.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ...core import errors
from ...core.errors import AtollError, Refused, StateError
from ..settings import Client

_ERRORS = {e.__name__: e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, AtollError)}


class Spoiled(StateError):  # noqa: N818  it says what happened
    """The model's file is not what was fetched, as a power cut leaves it: fetch it again."""


class Begin(msgspec.Struct):
    """What the process is told first: a client's settings, and the key of its files."""

    settings: Client
    key: bytes


class Order(msgspec.Struct, omit_defaults=True):
    """Answer `head` with the model in files[0] into files[1], over a link of `rate` bytes a second, 0 where
    that is unknown; with one file, make there the model that its run starts from; without a head, make
    files[2] of files[0] and the delta files[1]. `calibrate`: instead, make files[1] of the ONNX file
    files[0], on this data set. `tune`: instead, train the model in files[0] on the rows in files[1] into
    files[2].
    """

    files: list[str]
    head: dict[str, Any] | None = None
    sound: bool = False
    roots: bytes = b""
    federation: str = ""
    rate: float = 0.0
    calibrate: str = ""
    tune: dict[str, Any] | None = None


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """Done, or the error: its class and words. `about`: what its rows are, of the first of a process; what a
    fine-tune took.
    """

    about: dict[str, Any] = {}
    kind: str = ""
    text: str = ""

    @classmethod
    def of(cls, error: Exception) -> Said:
        """That this went wrong."""
        return cls(
            kind=type(error).__name__ if isinstance(error, AtollError) else "StateError", text=str(error)
        )

    def raised(self) -> None:
        """Raise the error that was told, if one was."""
        if self.kind == Spoiled.__name__:
            raise Spoiled(self.text)
        if self.kind:
            raise _ERRORS.get(self.kind, Refused)(self.text)


class Told(msgspec.Struct, omit_defaults=True):
    """What the process that serves is told: a model is offered, readings came, its call `number` is done."""

    what: Literal["offered", "news", "done"]
    head: dict[str, Any] = {}
    number: int = 0
    said: Said = Said()


class Wanted(msgspec.Struct, omit_defaults=True):
    """What it says: a letter of that `kind` for the parent; a call, `number`; or that it would rest, having
    been told `number` things. `head` then says which reading it waits for.
    """

    what: Literal["letter", "fetch", "tune", "rest"]
    head: dict[str, Any] = {}
    number: int = 0
    kind: str = ""
    files: list[str] = []
