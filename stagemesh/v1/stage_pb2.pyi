from stagemesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class StepKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_KIND_UNSPECIFIED: _ClassVar[StepKind]
    STEP_KIND_PREFILL: _ClassVar[StepKind]
    STEP_KIND_DECODE: _ClassVar[StepKind]
    STEP_KIND_STATELESS: _ClassVar[StepKind]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
STEP_KIND_UNSPECIFIED: StepKind
STEP_KIND_PREFILL: StepKind
STEP_KIND_DECODE: StepKind
STEP_KIND_STATELESS: StepKind

class RouteHop(_message.Message):
    __slots__ = ("stage", "replica_id", "address")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replica_id: str
    address: str
    def __init__(self, stage: _Optional[int] = ..., replica_id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed", "logprobs", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "held_ids", "held_before")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    HELD_IDS_FIELD_NUMBER: _ClassVar[int]
    HELD_BEFORE_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    logprobs: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    held_ids: _containers.RepeatedScalarFieldContainer[int]
    held_before: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., held_ids: _Optional[_Iterable[int]] = ..., held_before: _Optional[int] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("session", "epoch", "model", "revision", "route", "token_ids", "prompt_tokens", "max_tokens", "sampling", "stop_token_ids", "deadline_unix_ms", "reroutable", "held")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REROUTABLE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    model: str
    revision: str
    route: _containers.RepeatedCompositeFieldContainer[RouteHop]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    deadline_unix_ms: int
    reroutable: bool
    held: bool
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., route: _Optional[_Iterable[_Union[RouteHop, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., deadline_unix_ms: _Optional[int] = ..., reroutable: _Optional[bool] = ..., held: _Optional[bool] = ...) -> None: ...

class RerouteRequest(_message.Message):
    __slots__ = ("session", "epoch", "route", "stage")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    route: _containers.RepeatedCompositeFieldContainer[RouteHop]
    stage: int
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ..., route: _Optional[_Iterable[_Union[RouteHop, _Mapping]]] = ..., stage: _Optional[int] = ...) -> None: ...

class RerouteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LostReplica(_message.Message):
    __slots__ = ("stage", "replica_id", "code", "message")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replica_id: str
    code: int
    message: str
    def __init__(self, stage: _Optional[int] = ..., replica_id: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("tokens", "finish_reason", "loads", "timings", "lost", "reused_tokens")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    finish_reason: FinishReason
    loads: _containers.RepeatedCompositeFieldContainer[ReplicaLoad]
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    lost: LostReplica
    reused_tokens: int
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., loads: _Optional[_Iterable[_Union[ReplicaLoad, _Mapping]]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ..., lost: _Optional[_Union[LostReplica, _Mapping]] = ..., reused_tokens: _Optional[int] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "position", "logprob", "alternatives")
    ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    id: int
    position: int
    logprob: float
    alternatives: _containers.RepeatedCompositeFieldContainer[TokenAlternative]
    def __init__(self, id: _Optional[int] = ..., position: _Optional[int] = ..., logprob: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[TokenAlternative, _Mapping]]] = ...) -> None: ...

class TokenAlternative(_message.Message):
    __slots__ = ("id", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class ReplicaLoad(_message.Message):
    __slots__ = ("replica_id", "queue_depth", "sessions", "step_ms", "kv_bytes_used", "kv_bytes_total", "prompt_tokens", "prompt_token_us", "decode_ms", "kv_tokens_free")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FREE_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    queue_depth: int
    sessions: int
    step_ms: float
    kv_bytes_used: int
    kv_bytes_total: int
    prompt_tokens: int
    prompt_token_us: float
    decode_ms: float
    kv_tokens_free: int
    def __init__(self, replica_id: _Optional[str] = ..., queue_depth: _Optional[int] = ..., sessions: _Optional[int] = ..., step_ms: _Optional[float] = ..., kv_bytes_used: _Optional[int] = ..., kv_bytes_total: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., prompt_token_us: _Optional[float] = ..., decode_ms: _Optional[float] = ..., kv_tokens_free: _Optional[int] = ...) -> None: ...

class WatchPrefixesRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class PrefixReport(_message.Message):
    __slots__ = ("since", "sequence", "full", "more", "held", "dropped", "load", "part")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    since: int
    sequence: int
    full: bool
    more: bool
    held: bytes
    dropped: bytes
    load: ReplicaLoad
    part: int
    def __init__(self, since: _Optional[int] = ..., sequence: _Optional[int] = ..., full: _Optional[bool] = ..., more: _Optional[bool] = ..., held: _Optional[bytes] = ..., dropped: _Optional[bytes] = ..., load: _Optional[_Union[ReplicaLoad, _Mapping]] = ..., part: _Optional[int] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("stage", "replica_id", "steps", "queue_us", "compute_us", "encode_us", "network_us", "bubble_us", "rows")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    NETWORK_US_FIELD_NUMBER: _ClassVar[int]
    BUBBLE_US_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replica_id: str
    steps: int
    queue_us: int
    compute_us: int
    encode_us: int
    network_us: int
    bubble_us: int
    rows: int
    def __init__(self, stage: _Optional[int] = ..., replica_id: _Optional[str] = ..., steps: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., network_us: _Optional[int] = ..., bubble_us: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("session", "model", "revision", "route", "lengths", "inputs", "outputs", "deadline_unix_ms", "cancel", "traceparent")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    session: int
    model: str
    revision: str
    route: _containers.RepeatedCompositeFieldContainer[RouteHop]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    deadline_unix_ms: int
    cancel: bool
    traceparent: str
    def __init__(self, session: _Optional[int] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., route: _Optional[_Iterable[_Union[RouteHop, _Mapping]]] = ..., lengths: _Optional[_Iterable[int]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., deadline_unix_ms: _Optional[int] = ..., cancel: _Optional[bool] = ..., traceparent: _Optional[str] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("session", "response", "error")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    session: int
    response: ForwardResponse
    error: SessionError
    def __init__(self, session: _Optional[int] = ..., response: _Optional[_Union[ForwardResponse, _Mapping]] = ..., error: _Optional[_Union[SessionError, _Mapping]] = ...) -> None: ...

class ForwardResponse(_message.Message):
    __slots__ = ("outputs", "loads", "timings")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    loads: _containers.RepeatedCompositeFieldContainer[ReplicaLoad]
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., loads: _Optional[_Iterable[_Union[ReplicaLoad, _Mapping]]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "from_replica", "to_replica", "shared", "shared_accepted", "min_protocol", "features", "network", "local")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FROM_REPLICA_FIELD_NUMBER: _ClassVar[int]
    TO_REPLICA_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    SHARED_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    from_replica: str
    to_replica: str
    shared: SharedMemoryOffer
    shared_accepted: bool
    min_protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    network: str
    local: LocalSocket
    def __init__(self, protocol: _Optional[int] = ..., from_replica: _Optional[str] = ..., to_replica: _Optional[str] = ..., shared: _Optional[_Union[SharedMemoryOffer, _Mapping]] = ..., shared_accepted: _Optional[bool] = ..., min_protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., network: _Optional[str] = ..., local: _Optional[_Union[LocalSocket, _Mapping]] = ...) -> None: ...

class LocalSocket(_message.Message):
    __slots__ = ("name", "cookie", "caller")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    name: str
    cookie: bytes
    caller: str
    def __init__(self, name: _Optional[str] = ..., cookie: _Optional[bytes] = ..., caller: _Optional[str] = ...) -> None: ...

class SharedMemoryOffer(_message.Message):
    __slots__ = ("segment", "length", "cookie")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    segment: str
    length: int
    cookie: bytes
    def __init__(self, segment: _Optional[str] = ..., length: _Optional[int] = ..., cookie: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hello", "steps", "closes", "results", "hops", "sent_unix_us", "tensor", "sides", "frames", "part")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SIDES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    closes: _containers.RepeatedCompositeFieldContainer[SessionClose]
    results: _containers.RepeatedCompositeFieldContainer[StepResult]
    hops: _containers.RepeatedCompositeFieldContainer[HopRecord]
    sent_unix_us: int
    tensor: _tensor_pb2.Tensor
    sides: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    part: FramePart
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., closes: _Optional[_Iterable[_Union[SessionClose, _Mapping]]] = ..., results: _Optional[_Iterable[_Union[StepResult, _Mapping]]] = ..., hops: _Optional[_Iterable[_Union[HopRecord, _Mapping]]] = ..., sent_unix_us: _Optional[int] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., sides: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., frames: _Optional[_Iterable[bytes]] = ..., part: _Optional[_Union[FramePart, _Mapping]] = ...) -> None: ...

class FramePart(_message.Message):
    __slots__ = ("total", "data")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total: int
    data: bytes
    def __init__(self, total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("session", "epoch", "kind", "position", "tokens", "sample", "open", "token_ids", "rebuild")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    kind: StepKind
    position: int
    tokens: int
    sample: bool
    open: StepOpen
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    rebuild: bool
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ..., kind: _Optional[_Union[StepKind, str]] = ..., position: _Optional[int] = ..., tokens: _Optional[int] = ..., sample: _Optional[bool] = ..., open: _Optional[_Union[StepOpen, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., rebuild: _Optional[bool] = ...) -> None: ...

class StepOpen(_message.Message):
    __slots__ = ("route", "sampling", "max_total_tokens", "deadline_unix_ms", "traceparent", "outputs", "prefix_digests", "reused_tokens", "prompt_token_ids", "generated_token_ids", "hold", "resume", "rebuilt_stage")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    REBUILT_STAGE_FIELD_NUMBER: _ClassVar[int]
    route: _containers.RepeatedCompositeFieldContainer[RouteHop]
    sampling: Sampling
    max_total_tokens: int
    deadline_unix_ms: int
    traceparent: str
    outputs: _containers.RepeatedScalarFieldContainer[str]
    prefix_digests: bytes
    reused_tokens: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    generated_token_ids: _containers.RepeatedScalarFieldContainer[int]
    hold: bool
    resume: bool
    rebuilt_stage: int
    def __init__(self, route: _Optional[_Iterable[_Union[RouteHop, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., max_total_tokens: _Optional[int] = ..., deadline_unix_ms: _Optional[int] = ..., traceparent: _Optional[str] = ..., outputs: _Optional[_Iterable[str]] = ..., prefix_digests: _Optional[bytes] = ..., reused_tokens: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., generated_token_ids: _Optional[_Iterable[int]] = ..., hold: _Optional[bool] = ..., resume: _Optional[bool] = ..., rebuilt_stage: _Optional[int] = ...) -> None: ...

class SessionClose(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("session", "epoch", "token", "rows", "output_index", "prefilled")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    token: Token
    rows: int
    output_index: int
    prefilled: bool
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., rows: _Optional[int] = ..., output_index: _Optional[int] = ..., prefilled: _Optional[bool] = ...) -> None: ...

class HopRecord(_message.Message):
    __slots__ = ("stage", "replica_id", "queue_us", "compute_us", "encode_us", "network_us", "load", "bubble_us", "rows")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    NETWORK_US_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    BUBBLE_US_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replica_id: str
    queue_us: int
    compute_us: int
    encode_us: int
    network_us: int
    load: ReplicaLoad
    bubble_us: int
    rows: int
    def __init__(self, stage: _Optional[int] = ..., replica_id: _Optional[str] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., network_us: _Optional[int] = ..., load: _Optional[_Union[ReplicaLoad, _Mapping]] = ..., bubble_us: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("hello", "credits", "errors", "load")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    credits: int
    errors: _containers.RepeatedCompositeFieldContainer[SessionError]
    load: ReplicaLoad
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., credits: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[SessionError, _Mapping]]] = ..., load: _Optional[_Union[ReplicaLoad, _Mapping]] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("session", "epoch", "code", "message", "stage", "field", "prefix_missing", "lost", "retry_after_ms", "prefix_tokens")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_MISSING_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session: int
    epoch: int
    code: int
    message: str
    stage: int
    field: str
    prefix_missing: bool
    lost: LostReplica
    retry_after_ms: int
    prefix_tokens: int
    def __init__(self, session: _Optional[int] = ..., epoch: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., stage: _Optional[int] = ..., field: _Optional[str] = ..., prefix_missing: _Optional[bool] = ..., lost: _Optional[_Union[LostReplica, _Mapping]] = ..., retry_after_ms: _Optional[int] = ..., prefix_tokens: _Optional[int] = ...) -> None: ...

class GetNodeStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "partitions", "loop_lag_ms")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    LOOP_LAG_MS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionStatus]
    loop_lag_ms: float
    def __init__(self, node_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionStatus, _Mapping]]] = ..., loop_lag_ms: _Optional[float] = ...) -> None: ...

class PartitionStatus(_message.Message):
    __slots__ = ("replica_id", "model", "stage", "state", "detail", "load")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    stage: int
    state: str
    detail: str
    load: ReplicaLoad
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., stage: _Optional[int] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., load: _Optional[_Union[ReplicaLoad, _Mapping]] = ...) -> None: ...
