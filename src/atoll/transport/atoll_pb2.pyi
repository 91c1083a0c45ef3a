from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Packet(_message.Message):
    __slots__ = ("number", "seen", "letter")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    LETTER_FIELD_NUMBER: _ClassVar[int]
    number: int
    seen: int
    letter: bytes
    def __init__(self, number: _Optional[int] = ..., seen: _Optional[int] = ..., letter: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("upload", "frames")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    upload: str
    frames: int
    def __init__(self, upload: _Optional[str] = ..., frames: _Optional[int] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("blob", "start", "have")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    blob: str
    start: int
    have: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blob: _Optional[str] = ..., start: _Optional[int] = ..., have: _Optional[_Iterable[str]] = ...) -> None: ...
