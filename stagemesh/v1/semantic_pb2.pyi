from stagemesh.v1 import registry_pb2 as _registry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SemanticOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEMANTIC_ORDER_UNSPECIFIED: _ClassVar[SemanticOrder]
    SEMANTIC_ORDER_OFF: _ClassVar[SemanticOrder]
    SEMANTIC_ORDER_ON: _ClassVar[SemanticOrder]
    SEMANTIC_ORDER_RESET: _ClassVar[SemanticOrder]
SEMANTIC_ORDER_UNSPECIFIED: SemanticOrder
SEMANTIC_ORDER_OFF: SemanticOrder
SEMANTIC_ORDER_ON: SemanticOrder
SEMANTIC_ORDER_RESET: SemanticOrder

class SemanticScope(_message.Message):
    __slots__ = ("model", "revision", "encoder")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    encoder: str
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., encoder: _Optional[str] = ...) -> None: ...

class SemanticFindRequest(_message.Message):
    __slots__ = ("tenant", "scope", "settings", "partition", "vector", "text")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    scope: SemanticScope
    settings: _registry_pb2.Semantic
    partition: bytes
    vector: bytes
    text: str
    def __init__(self, tenant: _Optional[str] = ..., scope: _Optional[_Union[SemanticScope, _Mapping]] = ..., settings: _Optional[_Union[_registry_pb2.Semantic, _Mapping]] = ..., partition: _Optional[bytes] = ..., vector: _Optional[bytes] = ..., text: _Optional[str] = ...) -> None: ...

class SemanticFindResponse(_message.Message):
    __slots__ = ("key", "similarity", "kind", "serve", "false_hit_bound", "reason", "judge")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SERVE_FIELD_NUMBER: _ClassVar[int]
    FALSE_HIT_BOUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    similarity: float
    kind: str
    serve: bool
    false_hit_bound: float
    reason: str
    judge: bool
    def __init__(self, key: _Optional[bytes] = ..., similarity: _Optional[float] = ..., kind: _Optional[str] = ..., serve: _Optional[bool] = ..., false_hit_bound: _Optional[float] = ..., reason: _Optional[str] = ..., judge: _Optional[bool] = ...) -> None: ...

class SemanticKeepRequest(_message.Message):
    __slots__ = ("tenant", "scope", "partition", "key", "vector", "text", "ttl_s", "tags")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    scope: SemanticScope
    partition: bytes
    key: bytes
    vector: bytes
    text: str
    ttl_s: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tenant: _Optional[str] = ..., scope: _Optional[_Union[SemanticScope, _Mapping]] = ..., partition: _Optional[bytes] = ..., key: _Optional[bytes] = ..., vector: _Optional[bytes] = ..., text: _Optional[str] = ..., ttl_s: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class SemanticKeepResponse(_message.Message):
    __slots__ = ("kept", "reason")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kept: bool
    reason: str
    def __init__(self, kept: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SemanticJudgeRequest(_message.Message):
    __slots__ = ("tenant", "scope", "settings", "partition", "key", "similarity", "kind", "served", "kept_answer", "real_answer", "kept_vector", "real_vector")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    KEPT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    REAL_ANSWER_FIELD_NUMBER: _ClassVar[int]
    KEPT_VECTOR_FIELD_NUMBER: _ClassVar[int]
    REAL_VECTOR_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    scope: SemanticScope
    settings: _registry_pb2.Semantic
    partition: bytes
    key: bytes
    similarity: float
    kind: str
    served: bool
    kept_answer: str
    real_answer: str
    kept_vector: bytes
    real_vector: bytes
    def __init__(self, tenant: _Optional[str] = ..., scope: _Optional[_Union[SemanticScope, _Mapping]] = ..., settings: _Optional[_Union[_registry_pb2.Semantic, _Mapping]] = ..., partition: _Optional[bytes] = ..., key: _Optional[bytes] = ..., similarity: _Optional[float] = ..., kind: _Optional[str] = ..., served: _Optional[bool] = ..., kept_answer: _Optional[str] = ..., real_answer: _Optional[str] = ..., kept_vector: _Optional[bytes] = ..., real_vector: _Optional[bytes] = ...) -> None: ...

class SemanticJudgeResponse(_message.Message):
    __slots__ = ("same", "reason")
    SAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    same: bool
    reason: str
    def __init__(self, same: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class CacheUsageRequest(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[CacheUsage]
    def __init__(self, usage: _Optional[_Iterable[_Union[CacheUsage, _Mapping]]] = ...) -> None: ...

class CacheUsageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheUsage(_message.Message):
    __slots__ = ("model", "lookups", "exact_hits", "semantic_hits", "tokens_saved", "compute_ms_saved", "bytes_served")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    EXACT_HITS_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_HITS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_SAVED_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_SAVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SERVED_FIELD_NUMBER: _ClassVar[int]
    model: str
    lookups: int
    exact_hits: int
    semantic_hits: int
    tokens_saved: int
    compute_ms_saved: int
    bytes_served: int
    def __init__(self, model: _Optional[str] = ..., lookups: _Optional[int] = ..., exact_hits: _Optional[int] = ..., semantic_hits: _Optional[int] = ..., tokens_saved: _Optional[int] = ..., compute_ms_saved: _Optional[int] = ..., bytes_served: _Optional[int] = ...) -> None: ...

class CacheReportRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class CacheReport(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelCacheReport]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelCacheReport, _Mapping]]] = ...) -> None: ...

class ModelCacheReport(_message.Message):
    __slots__ = ("usage", "semantic", "hit_rate", "usual_hit_rate", "hit_rate_drifted")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    USUAL_HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_DRIFTED_FIELD_NUMBER: _ClassVar[int]
    usage: CacheUsage
    semantic: SemanticReport
    hit_rate: float
    usual_hit_rate: float
    hit_rate_drifted: bool
    def __init__(self, usage: _Optional[_Union[CacheUsage, _Mapping]] = ..., semantic: _Optional[_Union[SemanticReport, _Mapping]] = ..., hit_rate: _Optional[float] = ..., usual_hit_rate: _Optional[float] = ..., hit_rate_drifted: _Optional[bool] = ...) -> None: ...

class SemanticReport(_message.Message):
    __slots__ = ("scope", "state", "reason", "allowed_false_hit_rate", "confidence", "entries", "bytes", "finds", "served", "verified", "false_hits", "false_hit_rate_low", "false_hit_rate_high", "bands", "refused", "alarms", "alarm_level")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FALSE_HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FINDS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    FALSE_HITS_FIELD_NUMBER: _ClassVar[int]
    FALSE_HIT_RATE_LOW_FIELD_NUMBER: _ClassVar[int]
    FALSE_HIT_RATE_HIGH_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    ALARM_LEVEL_FIELD_NUMBER: _ClassVar[int]
    scope: SemanticScope
    state: str
    reason: str
    allowed_false_hit_rate: float
    confidence: float
    entries: int
    bytes: int
    finds: int
    served: int
    verified: int
    false_hits: int
    false_hit_rate_low: float
    false_hit_rate_high: float
    bands: _containers.RepeatedCompositeFieldContainer[SemanticBand]
    refused: _containers.ScalarMap[str, int]
    alarms: int
    alarm_level: float
    def __init__(self, scope: _Optional[_Union[SemanticScope, _Mapping]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., allowed_false_hit_rate: _Optional[float] = ..., confidence: _Optional[float] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ..., finds: _Optional[int] = ..., served: _Optional[int] = ..., verified: _Optional[int] = ..., false_hits: _Optional[int] = ..., false_hit_rate_low: _Optional[float] = ..., false_hit_rate_high: _Optional[float] = ..., bands: _Optional[_Iterable[_Union[SemanticBand, _Mapping]]] = ..., refused: _Optional[_Mapping[str, int]] = ..., alarms: _Optional[int] = ..., alarm_level: _Optional[float] = ...) -> None: ...

class SemanticBand(_message.Message):
    __slots__ = ("kind", "from_similarity", "to_similarity", "samples", "false_samples", "bound", "serves")
    KIND_FIELD_NUMBER: _ClassVar[int]
    FROM_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    TO_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FALSE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    from_similarity: float
    to_similarity: float
    samples: int
    false_samples: int
    bound: float
    serves: bool
    def __init__(self, kind: _Optional[str] = ..., from_similarity: _Optional[float] = ..., to_similarity: _Optional[float] = ..., samples: _Optional[int] = ..., false_samples: _Optional[int] = ..., bound: _Optional[float] = ..., serves: _Optional[bool] = ...) -> None: ...

class SemanticSwitchRequest(_message.Message):
    __slots__ = ("model", "order")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    model: str
    order: SemanticOrder
    def __init__(self, model: _Optional[str] = ..., order: _Optional[_Union[SemanticOrder, str]] = ...) -> None: ...

class SemanticSwitchResponse(_message.Message):
    __slots__ = ("scopes",)
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    scopes: int
    def __init__(self, scopes: _Optional[int] = ...) -> None: ...

class SemanticRow(_message.Message):
    __slots__ = ("kept", "expires_unix_ms")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    kept: SemanticKeepRequest
    expires_unix_ms: int
    def __init__(self, kept: _Optional[_Union[SemanticKeepRequest, _Mapping]] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class SemanticFault(_message.Message):
    __slots__ = ("tenant", "partition", "key", "wrong", "wrong_at")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    WRONG_AT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    partition: bytes
    key: bytes
    wrong: int
    wrong_at: float
    def __init__(self, tenant: _Optional[str] = ..., partition: _Optional[bytes] = ..., key: _Optional[bytes] = ..., wrong: _Optional[int] = ..., wrong_at: _Optional[float] = ...) -> None: ...

class SemanticState(_message.Message):
    __slots__ = ("scope", "counts", "off_by_operator", "off_by_alarm", "alarm_log", "alarms", "finds", "served", "verified", "false_hits", "settings", "used_unix_ms")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    OFF_BY_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    OFF_BY_ALARM_FIELD_NUMBER: _ClassVar[int]
    ALARM_LOG_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    FINDS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    FALSE_HITS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    USED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    scope: SemanticScope
    counts: _containers.RepeatedCompositeFieldContainer[SemanticCounts]
    off_by_operator: bool
    off_by_alarm: bool
    alarm_log: float
    alarms: int
    finds: int
    served: int
    verified: int
    false_hits: int
    settings: _registry_pb2.Semantic
    used_unix_ms: int
    def __init__(self, scope: _Optional[_Union[SemanticScope, _Mapping]] = ..., counts: _Optional[_Iterable[_Union[SemanticCounts, _Mapping]]] = ..., off_by_operator: _Optional[bool] = ..., off_by_alarm: _Optional[bool] = ..., alarm_log: _Optional[float] = ..., alarms: _Optional[int] = ..., finds: _Optional[int] = ..., served: _Optional[int] = ..., verified: _Optional[int] = ..., false_hits: _Optional[int] = ..., settings: _Optional[_Union[_registry_pb2.Semantic, _Mapping]] = ..., used_unix_ms: _Optional[int] = ...) -> None: ...

class SemanticCounts(_message.Message):
    __slots__ = ("kind", "band", "samples", "false_samples", "older_samples", "older_false_samples")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FALSE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OLDER_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OLDER_FALSE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    band: int
    samples: int
    false_samples: int
    older_samples: int
    older_false_samples: int
    def __init__(self, kind: _Optional[str] = ..., band: _Optional[int] = ..., samples: _Optional[int] = ..., false_samples: _Optional[int] = ..., older_samples: _Optional[int] = ..., older_false_samples: _Optional[int] = ...) -> None: ...
