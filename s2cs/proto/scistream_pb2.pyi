from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("uid", "role", "num_conn", "rate", "encrypted", "greeted", "targets")
    UID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NUM_CONN_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_FIELD_NUMBER: _ClassVar[int]
    GREETED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    uid: str
    role: str
    num_conn: int
    rate: int
    encrypted: bool
    greeted: bool
    targets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uid: _Optional[str] = ..., role: _Optional[str] = ..., num_conn: _Optional[int] = ..., rate: _Optional[int] = ..., encrypted: _Optional[bool] = ..., greeted: _Optional[bool] = ..., targets: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateTargets(_message.Message):
    __slots__ = ("uid", "remote_listeners", "role", "peer_certificate")
    UID_FIELD_NUMBER: _ClassVar[int]
    REMOTE_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PEER_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    uid: str
    remote_listeners: _containers.RepeatedScalarFieldContainer[str]
    role: str
    peer_certificate: str
    def __init__(self, uid: _Optional[str] = ..., remote_listeners: _Optional[_Iterable[str]] = ..., role: _Optional[str] = ..., peer_certificate: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: str
    def __init__(self, uid: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("uid", "prod_listeners", "role")
    UID_FIELD_NUMBER: _ClassVar[int]
    PROD_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    uid: str
    prod_listeners: _containers.RepeatedScalarFieldContainer[str]
    role: str
    def __init__(self, uid: _Optional[str] = ..., prod_listeners: _Optional[_Iterable[str]] = ..., role: _Optional[str] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("listeners", "prod_listeners", "certificate", "lease_seconds", "warnings", "proxy")
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    PROD_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    listeners: _containers.RepeatedScalarFieldContainer[str]
    prod_listeners: _containers.RepeatedScalarFieldContainer[str]
    certificate: str
    lease_seconds: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    proxy: str
    def __init__(self, listeners: _Optional[_Iterable[str]] = ..., prod_listeners: _Optional[_Iterable[str]] = ..., certificate: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ..., proxy: _Optional[str] = ...) -> None: ...

class AppResponse(_message.Message):
    __slots__ = ("message", "listeners")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    message: str
    listeners: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, message: _Optional[str] = ..., listeners: _Optional[_Iterable[str]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: str
    def __init__(self, uid: _Optional[str] = ...) -> None: ...

class SessionState(_message.Message):
    __slots__ = ("uid", "role", "state", "owner", "proxy", "listeners", "targets", "encrypted", "age_seconds", "lease_left_seconds", "connections", "bytes_in", "bytes_out", "restarts", "reason")
    UID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_LEFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    uid: str
    role: str
    state: str
    owner: str
    proxy: str
    listeners: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedScalarFieldContainer[str]
    encrypted: bool
    age_seconds: float
    lease_left_seconds: float
    connections: int
    bytes_in: int
    bytes_out: int
    restarts: int
    reason: str
    def __init__(self, uid: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., owner: _Optional[str] = ..., proxy: _Optional[str] = ..., listeners: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[str]] = ..., encrypted: _Optional[bool] = ..., age_seconds: _Optional[float] = ..., lease_left_seconds: _Optional[float] = ..., connections: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., restarts: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionState]
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionState, _Mapping]]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: str
    def __init__(self, uid: _Optional[str] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("lease_seconds",)
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: float
    def __init__(self, lease_seconds: _Optional[float] = ...) -> None: ...
