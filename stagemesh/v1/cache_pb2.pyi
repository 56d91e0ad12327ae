from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CacheLookupRequest(_message.Message):
    __slots__ = ("tenant", "key", "max_age_s", "want_lease", "wait_ms", "near_hits", "id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    WANT_LEASE_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    NEAR_HITS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key: bytes
    max_age_s: int
    want_lease: bool
    wait_ms: int
    near_hits: int
    id: int
    def __init__(self, tenant: _Optional[str] = ..., key: _Optional[bytes] = ..., max_age_s: _Optional[int] = ..., want_lease: _Optional[bool] = ..., wait_ms: _Optional[int] = ..., near_hits: _Optional[int] = ..., id: _Optional[int] = ...) -> None: ...

class CacheLookupResponse(_message.Message):
    __slots__ = ("hit", "value", "digest", "age_s", "lease", "lease_ttl_ms", "busy", "tags", "ttl_left_ms", "id", "ask_alone")
    HIT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    TTL_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ASK_ALONE_FIELD_NUMBER: _ClassVar[int]
    hit: bool
    value: bytes
    digest: bytes
    age_s: float
    lease: bytes
    lease_ttl_ms: int
    busy: bool
    tags: _containers.RepeatedScalarFieldContainer[str]
    ttl_left_ms: int
    id: int
    ask_alone: bool
    def __init__(self, hit: _Optional[bool] = ..., value: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., age_s: _Optional[float] = ..., lease: _Optional[bytes] = ..., lease_ttl_ms: _Optional[int] = ..., busy: _Optional[bool] = ..., tags: _Optional[_Iterable[str]] = ..., ttl_left_ms: _Optional[int] = ..., id: _Optional[int] = ..., ask_alone: _Optional[bool] = ...) -> None: ...

class CacheLookups(_message.Message):
    __slots__ = ("lookups",)
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    lookups: _containers.RepeatedCompositeFieldContainer[CacheLookupRequest]
    def __init__(self, lookups: _Optional[_Iterable[_Union[CacheLookupRequest, _Mapping]]] = ...) -> None: ...

class CacheAnswers(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[CacheLookupResponse]
    def __init__(self, answers: _Optional[_Iterable[_Union[CacheLookupResponse, _Mapping]]] = ...) -> None: ...

class CacheStoreRequest(_message.Message):
    __slots__ = ("tenant", "key", "value", "digest", "ttl_s", "tags", "lease", "begun_ms_ago")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key: bytes
    value: bytes
    digest: bytes
    ttl_s: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    lease: bytes
    begun_ms_ago: int
    def __init__(self, tenant: _Optional[str] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., ttl_s: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., lease: _Optional[bytes] = ..., begun_ms_ago: _Optional[int] = ...) -> None: ...

class CacheStoreResponse(_message.Message):
    __slots__ = ("stored", "reason")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    reason: str
    def __init__(self, stored: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class CacheStoreManyRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[CacheStoreRequest]
    def __init__(self, entries: _Optional[_Iterable[_Union[CacheStoreRequest, _Mapping]]] = ...) -> None: ...

class CacheStoreManyResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CacheStoreResponse]
    def __init__(self, results: _Optional[_Iterable[_Union[CacheStoreResponse, _Mapping]]] = ...) -> None: ...

class CacheLeasesRequest(_message.Message):
    __slots__ = ("renew", "release", "dissolve")
    RENEW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    DISSOLVE_FIELD_NUMBER: _ClassVar[int]
    renew: _containers.RepeatedScalarFieldContainer[bytes]
    release: _containers.RepeatedScalarFieldContainer[bytes]
    dissolve: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, renew: _Optional[_Iterable[bytes]] = ..., release: _Optional[_Iterable[bytes]] = ..., dissolve: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CacheLeasesResponse(_message.Message):
    __slots__ = ("lost",)
    LOST_FIELD_NUMBER: _ClassVar[int]
    lost: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, lost: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CacheInvalidateRequest(_message.Message):
    __slots__ = ("tenant", "tag", "tags", "prefix", "id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    tag: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    prefix: str
    id: str
    def __init__(self, tenant: _Optional[str] = ..., tag: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., prefix: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class CacheInvalidateResponse(_message.Message):
    __slots__ = ("entries", "id", "announced")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_FIELD_NUMBER: _ClassVar[int]
    entries: int
    id: str
    announced: bool
    def __init__(self, entries: _Optional[int] = ..., id: _Optional[str] = ..., announced: _Optional[bool] = ...) -> None: ...

class CacheInvalidation(_message.Message):
    __slots__ = ("what", "unix_ms")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    what: CacheInvalidateRequest
    unix_ms: int
    def __init__(self, what: _Optional[_Union[CacheInvalidateRequest, _Mapping]] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class CacheRecord(_message.Message):
    __slots__ = ("tenant", "key", "value", "digest", "tags", "stored_unix_ms", "expires_unix_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STORED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key: bytes
    value: bytes
    digest: bytes
    tags: _containers.RepeatedScalarFieldContainer[str]
    stored_unix_ms: int
    expires_unix_ms: int
    def __init__(self, tenant: _Optional[str] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., tags: _Optional[_Iterable[str]] = ..., stored_unix_ms: _Optional[int] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class CacheStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("entries", "bytes_used", "bytes_budget", "hits", "misses", "stores", "evictions", "expirations", "rejected", "invalidated", "computed", "taken_over", "coalesced", "gave_up_waiting", "waiting", "behind", "writes_dropped", "writes_waiting", "restored", "near_hits")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    BYTES_BUDGET_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPIRATIONS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    INVALIDATED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_OVER_FIELD_NUMBER: _ClassVar[int]
    COALESCED_FIELD_NUMBER: _ClassVar[int]
    GAVE_UP_WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    WRITES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    WRITES_WAITING_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    NEAR_HITS_FIELD_NUMBER: _ClassVar[int]
    entries: int
    bytes_used: int
    bytes_budget: int
    hits: int
    misses: int
    stores: int
    evictions: int
    expirations: int
    rejected: int
    invalidated: int
    computed: int
    taken_over: int
    coalesced: int
    gave_up_waiting: int
    waiting: int
    behind: str
    writes_dropped: int
    writes_waiting: int
    restored: int
    near_hits: int
    def __init__(self, entries: _Optional[int] = ..., bytes_used: _Optional[int] = ..., bytes_budget: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., stores: _Optional[int] = ..., evictions: _Optional[int] = ..., expirations: _Optional[int] = ..., rejected: _Optional[int] = ..., invalidated: _Optional[int] = ..., computed: _Optional[int] = ..., taken_over: _Optional[int] = ..., coalesced: _Optional[int] = ..., gave_up_waiting: _Optional[int] = ..., waiting: _Optional[int] = ..., behind: _Optional[str] = ..., writes_dropped: _Optional[int] = ..., writes_waiting: _Optional[int] = ..., restored: _Optional[int] = ..., near_hits: _Optional[int] = ...) -> None: ...

class CachedGeneration(_message.Message):
    __slots__ = ("chunks", "finish_reason", "prompt_tokens", "compute_ms", "partition")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[CachedChunk]
    finish_reason: str
    prompt_tokens: int
    compute_ms: int
    partition: bytes
    def __init__(self, chunks: _Optional[_Iterable[_Union[CachedChunk, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., compute_ms: _Optional[int] = ..., partition: _Optional[bytes] = ...) -> None: ...

class CachedChunk(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...
