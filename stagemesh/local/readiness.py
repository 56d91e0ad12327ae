"""How far a deployed model is. Pure: from its spec and its replicas to a verdict and a line for a person."""

from collections.abc import Iterable
from dataclasses import dataclass

from stagemesh.v1 import registry_pb2
from stagemesh.wanted import asleep, replicas_wanted


@dataclass(frozen=True)
class Readiness:
    """`ready` when every stage has as many ready replicas as the spec wants; `failed` holds one line each.

    `stuck` says what no node can take while nothing is loading; empty otherwise.
    """

    ready: bool
    failed: tuple[str, ...]
    line: str
    stuck: str = ""


def readiness(
    spec: registry_pb2.ModelSpec,
    replicas: Iterable[registry_pb2.ReplicaRecord],
    pending: Iterable[str] = (),
    scale: registry_pb2.ScaleRecord | None = None,
) -> Readiness:
    """Judge the replicas of the spec's model and revision; other models' replicas are passed over.

    A model that sleeps is ready: the next request wakes it.
    """
    of_model = [item for item in replicas if item.model == spec.name and item.revision == spec.revision]
    stages: list[str] = []
    missing = all_loading = 0
    for stage in range(len(spec.replicas)):
        wanted = replicas_wanted(spec, stage, scale)
        states = [replica.state for replica in of_model if replica.stage == stage]
        ready = states.count(registry_pb2.REPLICA_STATE_READY)
        loading = states.count(registry_pb2.REPLICA_STATE_LOADING)
        missing += max(0, wanted - ready)
        all_loading += loading
        stages.append(f"stage {stage}: {ready}/{wanted} ready" + (f", {loading} loading" if loading else ""))
    failed = tuple(
        f"stage {replica.stage} on {replica.node_id}: {replica.detail or 'failed without saying why'}"
        for replica in of_model
        if replica.state == registry_pb2.REPLICA_STATE_FAILED
    )
    waiting = "; ".join(pending)
    return Readiness(
        ready=missing == 0 and len(spec.replicas) > 0,
        failed=failed,
        stuck="" if all_loading else waiting,
        line=f"{spec.name}: "
        + ("asleep" if asleep(spec, scale) else ", ".join(stages))
        + (f" (waiting: {waiting})" if waiting else ""),
    )
