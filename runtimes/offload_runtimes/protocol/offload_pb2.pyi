from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ("hello", "welcome", "tensor", "failure", "ping", "pong", "cancel", "goodbye", "begin", "pad", "data")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    welcome: Welcome
    tensor: Tensor
    failure: Failure
    ping: Ping
    pong: Pong
    cancel: Cancel
    goodbye: Goodbye
    begin: Begin
    pad: bytes
    data: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., pad: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "bundle")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    bundle: str
    def __init__(self, protocol: _Optional[int] = ..., bundle: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "max_frames", "max_message_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    max_frames: int
    max_message_bytes: int
    def __init__(self, protocol: _Optional[int] = ..., max_frames: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("frame", "plan", "defaults")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    frame: int
    plan: int
    defaults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, frame: _Optional[int] = ..., plan: _Optional[int] = ..., defaults: _Optional[_Iterable[str]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("frame", "layout", "plan", "sent_s", "spans", "checksum")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    frame: int
    layout: bytes
    plan: int
    sent_s: float
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    checksum: int
    def __init__(self, frame: _Optional[int] = ..., layout: _Optional[bytes] = ..., plan: _Optional[int] = ..., sent_s: _Optional[float] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("name", "dtype", "shape", "encoding")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    encoding: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., encoding: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("numbers", "text", "sequence", "map")
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    numbers: Numbers
    text: Text
    sequence: Sequence
    map: Map
    def __init__(self, numbers: _Optional[_Union[Numbers, _Mapping]] = ..., text: _Optional[_Union[Text, _Mapping]] = ..., sequence: _Optional[_Union[Sequence, _Mapping]] = ..., map: _Optional[_Union[Map, _Mapping]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Text(_message.Message):
    __slots__ = ("shape", "elements")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    elements: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., elements: _Optional[_Iterable[str]] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ("elements",)
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, elements: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Map(_message.Message):
    __slots__ = ("keys", "values")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    keys: Value
    values: Value
    def __init__(self, keys: _Optional[_Union[Value, _Mapping]] = ..., values: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("kind", "name", "start_s", "end_s")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ARRIVAL: _ClassVar[Span.Kind]
        COMPUTE: _ClassVar[Span.Kind]
    ARRIVAL: Span.Kind
    COMPUTE: Span.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    kind: Span.Kind
    name: str
    start_s: float
    end_s: float
    def __init__(self, kind: _Optional[_Union[Span.Kind, str]] = ..., name: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("frame", "kind", "sentence")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SERVER: _ClassVar[Failure.Kind]
        INPUT: _ClassVar[Failure.Kind]
        BUNDLE: _ClassVar[Failure.Kind]
        DEADLINE: _ClassVar[Failure.Kind]
    SERVER: Failure.Kind
    INPUT: Failure.Kind
    BUNDLE: Failure.Kind
    DEADLINE: Failure.Kind
    FRAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    frame: int
    kind: Failure.Kind
    sentence: str
    def __init__(self, frame: _Optional[int] = ..., kind: _Optional[_Union[Failure.Kind, str]] = ..., sentence: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number", "data", "sent")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    number: int
    data: bytes
    sent: int
    def __init__(self, number: _Optional[int] = ..., data: _Optional[bytes] = ..., sent: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("number", "server_s", "data", "sent", "wait_s")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SERVER_S_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    number: int
    server_s: float
    data: bytes
    sent: int
    wait_s: float
    def __init__(self, number: _Optional[int] = ..., server_s: _Optional[float] = ..., data: _Optional[bytes] = ..., sent: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: int
    def __init__(self, frame: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("data", "reply_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    reply_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
