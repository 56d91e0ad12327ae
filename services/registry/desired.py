"""From a request to the desired state: checks it and builds the model's spec. Pure."""

import hashlib
import re
from collections.abc import Sequence

from stagemesh import records
from stagemesh.checkpoint import Checkpoint, partition_bytes
from stagemesh.errors import InvalidArgument
from stagemesh.revisions import rolls_out, specs_of
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec, Partition, ScaleRequest

from .certified import check_certified
from .cuts import even_cuts
from .planned import Placed
from .rollout.begin import scale_candidate
from .scaling.limits import check_scaling

DTYPES = ("F32", "BF16", "F16", "F64")
POLICIES = (
    "round_robin",
    "weighted",
    "least_loaded",
    "p2c_ewma",
    "session_affinity",
    "prefix_affinity",
)
DEFAULT_POLICY = "default"
"""In a `ScaleRequest`: back to the routers' own."""
MAX_ZONES = 64
MAX_REPLICAS = 1000
MAX_SOURCE = 1024
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0


def check_deploy(request: DeployRequest) -> str:
    """Check all that can be checked without the checkpoint and return the model's name.

    Raises `InvalidArgument` naming the field.
    """
    if not request.source or len(request.source) > MAX_SOURCE or "\0" in request.source:
        raise InvalidArgument(
            f"source: a local folder or a hub id of at most {MAX_SOURCE} characters is needed", field="source"
        )
    if request.dtype and request.dtype not in DTYPES:
        raise InvalidArgument(
            f"dtype: {request.dtype[:40]!r} is unknown; use one of {', '.join(DTYPES)}", field="dtype"
        )
    check_policy(request.policy)
    check_zones(request.zones)
    check_replicas(request.replicas or 1)
    check_weight(request.weight)
    if request.HasField("scaling"):
        check_scaling(request.scaling)
    return records.check_name(request.name or name_of(request.source))


def check_replicas(replicas: int) -> None:
    """Raise `InvalidArgument` unless 1 <= replicas <= 1000."""
    if not 1 <= replicas <= MAX_REPLICAS:
        raise InvalidArgument(f"replicas: {replicas} is not within 1..{MAX_REPLICAS}", field="replicas")


def check_weight(weight: float) -> None:
    """Raise `InvalidArgument` unless it is 0, for none, or within 0.001..1000."""
    if weight and not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidArgument(
            f"weight: {weight:g} is not within {MIN_WEIGHT:g}..{MAX_WEIGHT:g}", field="weight"
        )


def check_policy(policy: str) -> None:
    """Raise `InvalidArgument` for one that routers do not know; empty is their default."""
    if policy and policy not in POLICIES:
        raise InvalidArgument(
            f"policy: {policy[:40]!r} is unknown; use one of {', '.join(POLICIES)}", field="policy"
        )


def check_zones(zones: Sequence[str]) -> None:
    """Raise `InvalidArgument` unless they are few, not empty, and no longer than a node's may be."""
    if len(zones) > MAX_ZONES or any(not 1 <= len(zone) <= 63 for zone in zones):
        raise InvalidArgument(f"zones: at most {MAX_ZONES}, of 1 to 63 characters each", field="zones")


def name_of(source: str) -> str:
    """A model's name out of its source: the last part, with other characters than a name's replaced."""
    last = source.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")[:63]


def build_spec(
    name: str,
    request: DeployRequest,
    checkpoint: Checkpoint,
    *,
    source: str,
    hub_revision: str,
    placed: Placed | None = None,
) -> ModelSpec:
    """The desired state, without generation and creation time; cuts and replicas are the planner's where it was asked.

    Raises `InvalidArgument` for too many stages, and what `check_certified` does.
    """
    stages = len(placed.cuts) if placed is not None else request.stages or 1
    if checkpoint.task == "tensor" and request.dtype not in ("", checkpoint.dtype):
        raise InvalidArgument(f"dtype: the package was exported in {checkpoint.dtype}", field="dtype")
    if stages > len(checkpoint.cuts) + 1:
        raise InvalidArgument(
            f"stages: {stages} is more than {len(checkpoint.cuts) + 1}, the most that the model's "
            f"{checkpoint.layers} layers can be cut into",
            field="stages",
        )
    cuts = (
        list(placed.cuts)
        if placed is not None
        else even_cuts(
            checkpoint.layer_bytes,
            stages,
            embedding_bytes=checkpoint.embedding_bytes,
            head_bytes=checkpoint.head_bytes + (checkpoint.tied_bytes if stages > 1 else 0),
            allowed=checkpoint.cuts,
        )
    )
    spec = ModelSpec(
        name=name,
        source=source,
        hub_revision=hub_revision,
        revision=spec_revision(checkpoint.revision, request.dtype, cuts),
        task=checkpoint.task,
        architecture=checkpoint.architecture,
        dtype=request.dtype,
        checkpoint_dtype=checkpoint.dtype,
        partitions=partitions_of(checkpoint, cuts),
        replicas=placed.replicas if placed is not None else [request.replicas or 1] * stages,
        context_length=checkpoint.context_length,
        vocab_size=checkpoint.vocab_size,
        hidden_size=checkpoint.hidden_size,
        policy=request.policy,
        zones=sorted(set(request.zones)),
        cache=request.cache if request.HasField("cache") else True,
        cache_ttl_s=request.cache_ttl_s,
        uncertified=not check_certified(request, checkpoint, stages),
        weight=request.weight,
    )
    if request.HasField("scaling"):
        spec.scaling.CopyFrom(request.scaling)
    if request.HasField("semantic"):
        spec.semantic.CopyFrom(request.semantic)
    if placed is not None:
        spec.plan.CopyFrom(placed.record)
    checkpoint.signature.write(spec)
    return spec


def partitions_of(checkpoint: Checkpoint, cuts: Sequence[tuple[int, int]]) -> list[Partition]:
    """The partitions of half-open layer ranges."""
    return [
        Partition(first_layer=first, end_layer=end, parameter_bytes=partition_bytes(checkpoint, first, end))
        for first, end in cuts
    ]


def spec_revision(checkpoint_revision: str, dtype: str, cuts: Sequence[tuple[int, int]]) -> str:
    """`<checkpoint>-<settings>`: replicas of one revision compute the same and fit together into a route."""
    settings = hashlib.sha256(repr((dtype, list(cuts))).encode()).hexdigest()[:8]
    return f"{checkpoint_revision}-{settings}"


def same_settings(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two specs differ in nothing but generation and creation time."""
    one, other = _bare(one), _bare(other)
    return one == other


def scaled(spec: ModelSpec, request: ScaleRequest) -> ModelSpec:
    """The spec with the replicas or limits, and the policy, asked for. Raises `InvalidArgument` naming the field.

    A number of replicas holds from then on; limits let it follow the load again.
    """
    scales_itself = request.HasField("scaling")
    check_weight(request.weight)
    if request.replicas or not (request.HasField("policy") or scales_itself or request.weight):
        check_replicas(request.replicas)
    if scales_itself:
        check_scaling(request.scaling)
        if request.replicas:
            raise InvalidArgument("scaling: not together with a fixed number of replicas", field="scaling")
    policy = "" if request.policy == DEFAULT_POLICY else request.policy
    check_policy(policy)
    stages = len(spec.partitions)
    if request.HasField("stage") and request.stage >= stages:
        raise InvalidArgument(f"stage: {request.stage} is not within 0..{stages - 1}", field="stage")
    changed = ModelSpec()
    changed.CopyFrom(spec)
    if request.HasField("policy"):
        changed.policy = policy
        if rolls_out(changed):
            changed.rollout.next.policy = policy
    if request.weight:
        for one in specs_of(changed):
            one.weight = request.weight
    if scales_itself:
        for one in specs_of(changed):
            one.scaling.CopyFrom(request.scaling)
    if request.replicas:
        for one in specs_of(changed):
            one.ClearField("scaling")
        scale_candidate(changed, request.replicas, request.stage if request.HasField("stage") else None)
        changed.replicas[:] = [
            request.replicas if not request.HasField("stage") or request.stage == stage else wanted
            for stage, wanted in enumerate(spec.replicas)
        ]
    return changed


def _bare(spec: ModelSpec) -> ModelSpec:
    bare = ModelSpec()
    bare.CopyFrom(spec)
    bare.ClearField("generation")
    bare.ClearField("created_unix_ms")
    return bare
