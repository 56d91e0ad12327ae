"""How many replicas a stage should have now: the one place that says it, for the registry, routers and the command line. Pure."""

from stagemesh.v1.registry_pb2 import ModelSpec, ScaleRecord


def replicas_wanted(spec: ModelSpec, stage: int, scale: ScaleRecord | None = None) -> int:
    """Replicas of a stage: what the autoscaler decided, where the model has it; else what the user asked for.

    Fixed numbers are one at least. Of a model that scales itself all stages sleep, or none does; until something was
    decided, or when what was decided is of another number of stages, it has what the user asked for, within its limits.
    """
    if not spec.HasField("scaling"):
        return max(1, spec.replicas[stage]) if stage < len(spec.replicas) else 1
    if asleep(spec, scale):
        return 0
    decided = scale.replicas if scale is not None and len(scale.replicas) == len(spec.partitions) else ()
    numbers = decided or spec.replicas
    least = max(1, spec.scaling.min_replicas)
    wanted = max(least, numbers[stage]) if stage < len(numbers) else least
    return min(wanted, max(spec.scaling.max_replicas, least)) if spec.scaling.max_replicas else wanted


def asleep(spec: ModelSpec, scale: ScaleRecord | None) -> bool:
    """Whether the model has no replicas, because nobody asked for it for a while."""
    if not spec.HasField("scaling") or spec.scaling.min_replicas or scale is None:
        return False
    return len(scale.replicas) == len(spec.partitions) and not any(scale.replicas)
