from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STATE_UNSPECIFIED: _ClassVar[RolloutState]
    ROLLOUT_STATE_LOADING: _ClassVar[RolloutState]
    ROLLOUT_STATE_SHARING: _ClassVar[RolloutState]
    ROLLOUT_STATE_DRAINING: _ClassVar[RolloutState]
    ROLLOUT_STATE_BACKING_OUT: _ClassVar[RolloutState]
    ROLLOUT_STATE_DONE: _ClassVar[RolloutState]
    ROLLOUT_STATE_ROLLED_BACK: _ClassVar[RolloutState]

class RowKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_KIND_UNSPECIFIED: _ClassVar[RowKind]
    ROW_KIND_TOKEN: _ClassVar[RowKind]
    ROW_KIND_SAMPLE: _ClassVar[RowKind]

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]

class RolloutAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_ACTION_UNSPECIFIED: _ClassVar[RolloutAction]
    ROLLOUT_ACTION_PROMOTE: _ClassVar[RolloutAction]
    ROLLOUT_ACTION_ABORT: _ClassVar[RolloutAction]
ROLLOUT_STATE_UNSPECIFIED: RolloutState
ROLLOUT_STATE_LOADING: RolloutState
ROLLOUT_STATE_SHARING: RolloutState
ROLLOUT_STATE_DRAINING: RolloutState
ROLLOUT_STATE_BACKING_OUT: RolloutState
ROLLOUT_STATE_DONE: RolloutState
ROLLOUT_STATE_ROLLED_BACK: RolloutState
ROW_KIND_UNSPECIFIED: RowKind
ROW_KIND_TOKEN: RowKind
ROW_KIND_SAMPLE: RowKind
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
ROLLOUT_ACTION_UNSPECIFIED: RolloutAction
ROLLOUT_ACTION_PROMOTE: RolloutAction
ROLLOUT_ACTION_ABORT: RolloutAction

class ModelSpec(_message.Message):
    __slots__ = ("name", "source", "hub_revision", "revision", "task", "architecture", "dtype", "partitions", "replicas", "generation", "context_length", "vocab_size", "policy", "cache", "cache_ttl_s", "created_unix_ms", "hidden_size", "checkpoint_dtype", "inputs", "outputs", "rows", "labels", "uncertified", "zones", "scaling", "semantic", "rollout", "plan", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HUB_REVISION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    UNCERTIFIED_FIELD_NUMBER: _ClassVar[int]
    ZONES_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    hub_revision: str
    revision: str
    task: str
    architecture: str
    dtype: str
    partitions: _containers.RepeatedCompositeFieldContainer[Partition]
    replicas: _containers.RepeatedScalarFieldContainer[int]
    generation: int
    context_length: int
    vocab_size: int
    policy: str
    cache: bool
    cache_ttl_s: int
    created_unix_ms: int
    hidden_size: int
    checkpoint_dtype: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    rows: RowKind
    labels: _containers.RepeatedScalarFieldContainer[str]
    uncertified: bool
    zones: _containers.RepeatedScalarFieldContainer[str]
    scaling: Scaling
    semantic: Semantic
    rollout: Rollout
    plan: PlacementPlan
    weight: float
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., hub_revision: _Optional[str] = ..., revision: _Optional[str] = ..., task: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[Partition, _Mapping]]] = ..., replicas: _Optional[_Iterable[int]] = ..., generation: _Optional[int] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., policy: _Optional[str] = ..., cache: _Optional[bool] = ..., cache_ttl_s: _Optional[int] = ..., created_unix_ms: _Optional[int] = ..., hidden_size: _Optional[int] = ..., checkpoint_dtype: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., rows: _Optional[_Union[RowKind, str]] = ..., labels: _Optional[_Iterable[str]] = ..., uncertified: _Optional[bool] = ..., zones: _Optional[_Iterable[str]] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., semantic: _Optional[_Union[Semantic, _Mapping]] = ..., rollout: _Optional[_Union[Rollout, _Mapping]] = ..., plan: _Optional[_Union[PlacementPlan, _Mapping]] = ..., weight: _Optional[float] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("next", "state", "kind", "share", "steps", "step", "hold_s", "reason", "started_unix_ms", "step_unix_ms", "from_revision", "to_revision", "ready_s")
    NEXT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    READY_S_FIELD_NUMBER: _ClassVar[int]
    next: ModelSpec
    state: RolloutState
    kind: str
    share: float
    steps: _containers.RepeatedScalarFieldContainer[float]
    step: int
    hold_s: int
    reason: str
    started_unix_ms: int
    step_unix_ms: int
    from_revision: str
    to_revision: str
    ready_s: int
    def __init__(self, next: _Optional[_Union[ModelSpec, _Mapping]] = ..., state: _Optional[_Union[RolloutState, str]] = ..., kind: _Optional[str] = ..., share: _Optional[float] = ..., steps: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ..., hold_s: _Optional[int] = ..., reason: _Optional[str] = ..., started_unix_ms: _Optional[int] = ..., step_unix_ms: _Optional[int] = ..., from_revision: _Optional[str] = ..., to_revision: _Optional[str] = ..., ready_s: _Optional[int] = ...) -> None: ...

class PlacementPlan(_message.Message):
    __slots__ = ("objective", "stages", "tokens_per_s", "latency_ms", "optimal", "why", "unix_ms", "node_labels", "pins", "auto_recut", "fixed_stages")
    class NodeLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    OPTIMAL_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NODE_LABELS_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    AUTO_RECUT_FIELD_NUMBER: _ClassVar[int]
    FIXED_STAGES_FIELD_NUMBER: _ClassVar[int]
    objective: str
    stages: _containers.RepeatedCompositeFieldContainer[PlannedStage]
    tokens_per_s: float
    latency_ms: float
    optimal: bool
    why: _containers.RepeatedScalarFieldContainer[str]
    unix_ms: int
    node_labels: _containers.ScalarMap[str, str]
    pins: _containers.RepeatedCompositeFieldContainer[PlacementPin]
    auto_recut: bool
    fixed_stages: int
    def __init__(self, objective: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[PlannedStage, _Mapping]]] = ..., tokens_per_s: _Optional[float] = ..., latency_ms: _Optional[float] = ..., optimal: _Optional[bool] = ..., why: _Optional[_Iterable[str]] = ..., unix_ms: _Optional[int] = ..., node_labels: _Optional[_Mapping[str, str]] = ..., pins: _Optional[_Iterable[_Union[PlacementPin, _Mapping]]] = ..., auto_recut: _Optional[bool] = ..., fixed_stages: _Optional[int] = ...) -> None: ...

class PlannedStage(_message.Message):
    __slots__ = ("nodes", "tokens_per_s", "pass_ms")
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PASS_MS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    tokens_per_s: float
    pass_ms: float
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., tokens_per_s: _Optional[float] = ..., pass_ms: _Optional[float] = ...) -> None: ...

class PlacementPin(_message.Message):
    __slots__ = ("layers", "zone", "node_labels", "nodes")
    class NodeLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    NODE_LABELS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    layers: str
    zone: str
    node_labels: _containers.ScalarMap[str, str]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layers: _Optional[str] = ..., zone: _Optional[str] = ..., node_labels: _Optional[_Mapping[str, str]] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class Semantic(_message.Message):
    __slots__ = ("enabled", "encoder", "allowed_false_hit_rate", "confidence", "verify_share", "min_similarity", "loose")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FALSE_HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    VERIFY_SHARE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    LOOSE_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    encoder: str
    allowed_false_hit_rate: float
    confidence: float
    verify_share: float
    min_similarity: float
    loose: bool
    def __init__(self, enabled: _Optional[bool] = ..., encoder: _Optional[str] = ..., allowed_false_hit_rate: _Optional[float] = ..., confidence: _Optional[float] = ..., verify_share: _Optional[float] = ..., min_similarity: _Optional[float] = ..., loose: _Optional[bool] = ...) -> None: ...

class Scaling(_message.Message):
    __slots__ = ("min_replicas", "max_replicas", "target_queue_ms", "target_kv", "idle_s")
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TARGET_QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TARGET_KV_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    min_replicas: int
    max_replicas: int
    target_queue_ms: int
    target_kv: float
    idle_s: int
    def __init__(self, min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ..., target_queue_ms: _Optional[int] = ..., target_kv: _Optional[float] = ..., idle_s: _Optional[int] = ...) -> None: ...

class ScaleRecord(_message.Message):
    __slots__ = ("model", "replicas", "reason", "unix_ms", "traceparent")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    replicas: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    unix_ms: int
    traceparent: str
    def __init__(self, model: _Optional[str] = ..., replicas: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., unix_ms: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class CapacityRecord(_message.Message):
    __slots__ = ("nodes", "reason", "unix_ms")
    NODES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    nodes: int
    reason: str
    unix_ms: int
    def __init__(self, nodes: _Optional[int] = ..., reason: _Optional[str] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class EventRecord(_message.Message):
    __slots__ = ("kind", "model", "reason", "numbers", "unix_ms", "registry")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    model: str
    reason: str
    numbers: _containers.ScalarMap[str, float]
    unix_ms: int
    registry: str
    def __init__(self, kind: _Optional[str] = ..., model: _Optional[str] = ..., reason: _Optional[str] = ..., numbers: _Optional[_Mapping[str, float]] = ..., unix_ms: _Optional[int] = ..., registry: _Optional[str] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtypes", "shape", "optional", "per_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    shape: _containers.RepeatedScalarFieldContainer[int]
    optional: bool
    per_token: bool
    def __init__(self, name: _Optional[str] = ..., dtypes: _Optional[_Iterable[str]] = ..., shape: _Optional[_Iterable[int]] = ..., optional: _Optional[bool] = ..., per_token: _Optional[bool] = ...) -> None: ...

class Partition(_message.Message):
    __slots__ = ("first_layer", "end_layer", "parameter_bytes")
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    first_layer: int
    end_layer: int
    parameter_bytes: int
    def __init__(self, first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., parameter_bytes: _Optional[int] = ...) -> None: ...

class NodeRecord(_message.Message):
    __slots__ = ("node_id", "address", "host", "pid", "device", "device_name", "memory_bytes", "threads", "gflops", "memory_gbps", "zone", "labels", "draining", "started_unix_ms", "version", "layer_profiles", "disk_gbps", "links", "keeps")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LinksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LinkProfile
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[LinkProfile, _Mapping]] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    GFLOPS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_GBPS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_PROFILES_FIELD_NUMBER: _ClassVar[int]
    DISK_GBPS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    host: str
    pid: int
    device: str
    device_name: str
    memory_bytes: int
    threads: int
    gflops: float
    memory_gbps: float
    zone: str
    labels: _containers.ScalarMap[str, str]
    draining: bool
    started_unix_ms: int
    version: str
    layer_profiles: _containers.RepeatedCompositeFieldContainer[LayerProfile]
    disk_gbps: float
    links: _containers.MessageMap[str, LinkProfile]
    keeps: _containers.RepeatedCompositeFieldContainer[KeptPartition]
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., threads: _Optional[int] = ..., gflops: _Optional[float] = ..., memory_gbps: _Optional[float] = ..., zone: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., draining: _Optional[bool] = ..., started_unix_ms: _Optional[int] = ..., version: _Optional[str] = ..., layer_profiles: _Optional[_Iterable[_Union[LayerProfile, _Mapping]]] = ..., disk_gbps: _Optional[float] = ..., links: _Optional[_Mapping[str, LinkProfile]] = ..., keeps: _Optional[_Iterable[_Union[KeptPartition, _Mapping]]] = ...) -> None: ...

class KeptPartition(_message.Message):
    __slots__ = ("checkpoint", "dtype", "first_layer", "end_layer", "bytes")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    dtype: str
    first_layer: int
    end_layer: int
    bytes: int
    def __init__(self, checkpoint: _Optional[str] = ..., dtype: _Optional[str] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class LayerProfile(_message.Message):
    __slots__ = ("shape", "layer_ms", "overhead_ms")
    class LayerMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_MS_FIELD_NUMBER: _ClassVar[int]
    OVERHEAD_MS_FIELD_NUMBER: _ClassVar[int]
    shape: str
    layer_ms: _containers.ScalarMap[int, float]
    overhead_ms: float
    def __init__(self, shape: _Optional[str] = ..., layer_ms: _Optional[_Mapping[int, float]] = ..., overhead_ms: _Optional[float] = ...) -> None: ...

class LinkProfile(_message.Message):
    __slots__ = ("rtt_ms", "gbit")
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    GBIT_FIELD_NUMBER: _ClassVar[int]
    rtt_ms: float
    gbit: float
    def __init__(self, rtt_ms: _Optional[float] = ..., gbit: _Optional[float] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("replica_id", "node_id", "model", "stage", "stages", "partition", "generation", "revision", "replaces", "traceparent")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    node_id: str
    model: str
    stage: int
    stages: int
    partition: Partition
    generation: int
    revision: str
    replaces: str
    traceparent: str
    def __init__(self, replica_id: _Optional[str] = ..., node_id: _Optional[str] = ..., model: _Optional[str] = ..., stage: _Optional[int] = ..., stages: _Optional[int] = ..., partition: _Optional[_Union[Partition, _Mapping]] = ..., generation: _Optional[int] = ..., revision: _Optional[str] = ..., replaces: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class ReplicaRecord(_message.Message):
    __slots__ = ("replica_id", "model", "revision", "stage", "stages", "partition", "node_id", "address", "pid", "zone", "state", "detail", "generation", "kv_bytes_total", "canary_ms")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CANARY_MS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    revision: str
    stage: int
    stages: int
    partition: Partition
    node_id: str
    address: str
    pid: int
    zone: str
    state: ReplicaState
    detail: str
    generation: int
    kv_bytes_total: int
    canary_ms: float
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., stage: _Optional[int] = ..., stages: _Optional[int] = ..., partition: _Optional[_Union[Partition, _Mapping]] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., zone: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., detail: _Optional[str] = ..., generation: _Optional[int] = ..., kv_bytes_total: _Optional[int] = ..., canary_ms: _Optional[float] = ...) -> None: ...

class ServiceRecord(_message.Message):
    __slots__ = ("kind", "id", "address", "http_address", "pid", "started_unix_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    address: str
    http_address: str
    pid: int
    started_unix_ms: int
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., address: _Optional[str] = ..., http_address: _Optional[str] = ..., pid: _Optional[int] = ..., started_unix_ms: _Optional[int] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("source", "name", "hub_revision", "stages", "replicas", "dtype", "policy", "cache", "cache_ttl_s", "force", "certificate", "zones", "scaling", "semantic", "canary", "canary_s", "plan", "auto_recut", "node_labels", "pins", "weight", "allow_pending")
    class NodeLabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HUB_REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ZONES_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    CANARY_S_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    AUTO_RECUT_FIELD_NUMBER: _ClassVar[int]
    NODE_LABELS_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PENDING_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    hub_revision: str
    stages: int
    replicas: int
    dtype: str
    policy: str
    cache: bool
    cache_ttl_s: int
    force: bool
    certificate: str
    zones: _containers.RepeatedScalarFieldContainer[str]
    scaling: Scaling
    semantic: Semantic
    canary: float
    canary_s: int
    plan: str
    auto_recut: bool
    node_labels: _containers.ScalarMap[str, str]
    pins: _containers.RepeatedCompositeFieldContainer[PlacementPin]
    weight: float
    allow_pending: bool
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., hub_revision: _Optional[str] = ..., stages: _Optional[int] = ..., replicas: _Optional[int] = ..., dtype: _Optional[str] = ..., policy: _Optional[str] = ..., cache: _Optional[bool] = ..., cache_ttl_s: _Optional[int] = ..., force: _Optional[bool] = ..., certificate: _Optional[str] = ..., zones: _Optional[_Iterable[str]] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., semantic: _Optional[_Union[Semantic, _Mapping]] = ..., canary: _Optional[float] = ..., canary_s: _Optional[int] = ..., plan: _Optional[str] = ..., auto_recut: _Optional[bool] = ..., node_labels: _Optional[_Mapping[str, str]] = ..., pins: _Optional[_Iterable[_Union[PlacementPin, _Mapping]]] = ..., weight: _Optional[float] = ..., allow_pending: _Optional[bool] = ...) -> None: ...

class DeployResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class UndeployRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UndeployResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("name", "replicas", "stage", "policy", "scaling", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    replicas: int
    stage: int
    policy: str
    scaling: Scaling
    weight: float
    def __init__(self, name: _Optional[str] = ..., replicas: _Optional[int] = ..., stage: _Optional[int] = ..., policy: _Optional[str] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., weight: _Optional[float] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class WakeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WakeResponse(_message.Message):
    __slots__ = ("woken",)
    WOKEN_FIELD_NUMBER: _ClassVar[int]
    woken: bool
    def __init__(self, woken: _Optional[bool] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("model", "kind", "follow", "since_unix_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    kind: str
    follow: bool
    since_unix_ms: int
    def __init__(self, model: _Optional[str] = ..., kind: _Optional[str] = ..., follow: _Optional[bool] = ..., since_unix_ms: _Optional[int] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("reporter", "covers_ms", "replicas", "models")
    REPORTER_FIELD_NUMBER: _ClassVar[int]
    COVERS_MS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    reporter: str
    covers_ms: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaReport]
    models: _containers.RepeatedCompositeFieldContainer[ModelReport]
    def __init__(self, reporter: _Optional[str] = ..., covers_ms: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaReport, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelReport, _Mapping]]] = ...) -> None: ...

class ReplicaReport(_message.Message):
    __slots__ = ("replica_id", "model", "stage", "revision", "queue_ms", "busy", "kv", "running", "waiting", "passes_per_s", "pass_ms")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PASSES_PER_S_FIELD_NUMBER: _ClassVar[int]
    PASS_MS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    stage: int
    revision: str
    queue_ms: float
    busy: float
    kv: float
    running: int
    waiting: int
    passes_per_s: float
    pass_ms: float
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., stage: _Optional[int] = ..., revision: _Optional[str] = ..., queue_ms: _Optional[float] = ..., busy: _Optional[float] = ..., kv: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., passes_per_s: _Optional[float] = ..., pass_ms: _Optional[float] = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("model", "arrivals", "active", "waiting", "held", "revisions", "trials")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    model: str
    arrivals: int
    active: int
    waiting: int
    held: int
    revisions: _containers.RepeatedCompositeFieldContainer[RevisionReport]
    trials: _containers.RepeatedCompositeFieldContainer[RevisionTrial]
    def __init__(self, model: _Optional[str] = ..., arrivals: _Optional[int] = ..., active: _Optional[int] = ..., waiting: _Optional[int] = ..., held: _Optional[int] = ..., revisions: _Optional[_Iterable[_Union[RevisionReport, _Mapping]]] = ..., trials: _Optional[_Iterable[_Union[RevisionTrial, _Mapping]]] = ...) -> None: ...

class RevisionTrial(_message.Message):
    __slots__ = ("revision", "step_unix_ms", "generation", "requests", "errors", "running", "pace")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STEP_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    revision: str
    step_unix_ms: int
    generation: int
    requests: int
    errors: int
    running: int
    pace: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, revision: _Optional[str] = ..., step_unix_ms: _Optional[int] = ..., generation: _Optional[int] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., running: _Optional[int] = ..., pace: _Optional[_Iterable[int]] = ...) -> None: ...

class RevisionReport(_message.Message):
    __slots__ = ("revision", "requests", "errors", "latency_ms_sum", "latency_ms_squares")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_SUM_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_SQUARES_FIELD_NUMBER: _ClassVar[int]
    revision: str
    requests: int
    errors: int
    latency_ms_sum: float
    latency_ms_squares: float
    def __init__(self, revision: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., latency_ms_sum: _Optional[float] = ..., latency_ms_squares: _Optional[float] = ...) -> None: ...

class ReportPace(_message.Message):
    __slots__ = ("period_ms",)
    PERIOD_MS_FIELD_NUMBER: _ClassVar[int]
    period_ms: int
    def __init__(self, period_ms: _Optional[int] = ...) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("name", "action")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: RolloutAction
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[RolloutAction, str]] = ...) -> None: ...

class RolloutResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class RecutRequest(_message.Message):
    __slots__ = ("name", "dry_run", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dry_run: bool
    force: bool
    def __init__(self, name: _Optional[str] = ..., dry_run: _Optional[bool] = ..., force: _Optional[bool] = ...) -> None: ...

class RecutResponse(_message.Message):
    __slots__ = ("model", "begun", "reason", "plan", "present_tokens_per_s", "partitions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PRESENT_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    begun: bool
    reason: str
    plan: PlacementPlan
    present_tokens_per_s: float
    partitions: _containers.RepeatedCompositeFieldContainer[Partition]
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., begun: _Optional[bool] = ..., reason: _Optional[str] = ..., plan: _Optional[_Union[PlacementPlan, _Mapping]] = ..., present_tokens_per_s: _Optional[float] = ..., partitions: _Optional[_Iterable[_Union[Partition, _Mapping]]] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("model", "replicas", "pending", "scale")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaRecord]
    pending: _containers.RepeatedScalarFieldContainer[str]
    scale: ScaleRecord
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaRecord, _Mapping]]] = ..., pending: _Optional[_Iterable[str]] = ..., scale: _Optional[_Union[ScaleRecord, _Mapping]] = ...) -> None: ...
