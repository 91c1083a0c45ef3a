# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

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

class Piece(_message.Message):
    __slots__ = ("call", "number", "taken", "end", "body", "method", "path", "status", "headers")
    class End(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MORE: _ClassVar[Piece.End]
        LAST: _ClassVar[Piece.End]
        BROKEN: _ClassVar[Piece.End]
    MORE: Piece.End
    LAST: Piece.End
    BROKEN: Piece.End
    class Header(_message.Message):
        __slots__ = ("name", "value")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        name: str
        value: str
        def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALL_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    call: bytes
    number: int
    taken: int
    end: Piece.End
    body: bytes
    method: str
    path: str
    status: int
    headers: _containers.RepeatedCompositeFieldContainer[Piece.Header]
    def __init__(self, call: _Optional[bytes] = ..., number: _Optional[int] = ..., taken: _Optional[int] = ..., end: _Optional[_Union[Piece.End, str]] = ..., body: _Optional[bytes] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., status: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[Piece.Header, _Mapping]]] = ...) -> None: ...
