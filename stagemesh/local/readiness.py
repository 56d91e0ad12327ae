"""How far a deployed model is. Pure: from its spec and its replicas to a verdict and a line for a person."""

from collections.abc import Iterable
from dataclasses import dataclass

from stagemesh.revisions import rolls_out
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
    revision: str = "",
) -> Readiness:
    """Judge the replicas of the spec's model and revision; other models' replicas are passed over.

    A model that sleeps is ready: the next request wakes it. With `revision` it is that one which is waited for: it is not
    ready while its rollout is under way, and has failed when it was taken back.
    """
    if revision and rolls_out(spec):
        waiting = f" (waiting: {'; '.join(pending)})" if pending else ""
        return Readiness(ready=False, failed=(), line=f"{spec.name}: {rollout_line(spec)}{waiting}")
    if revision and spec.revision != revision and spec.rollout.to_revision == revision:
        line = rollout_line(spec)
        return Readiness(ready=False, failed=(line,), line=f"{spec.name}: {line}")
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


def rollout_line(spec: registry_pb2.ModelSpec) -> str:
    """The model's rollout in one line; empty when there was none."""
    rollout = spec.rollout
    words = {
        registry_pb2.ROLLOUT_STATE_LOADING: "loads beside",
        registry_pb2.ROLLOUT_STATE_SHARING: f"gets {rollout.share:.0%} of the new sessions of",
        registry_pb2.ROLLOUT_STATE_DRAINING: "gets all new sessions, others still run on",
        registry_pb2.ROLLOUT_STATE_BACKING_OUT: "is being taken back for",
        registry_pb2.ROLLOUT_STATE_DONE: "took over from",
        registry_pb2.ROLLOUT_STATE_ROLLED_BACK: "was taken back for",
    }.get(rollout.state)
    if words is None:
        return ""
    old, new = short_revision(rollout.from_revision), short_revision(rollout.to_revision)
    return f"{rollout.kind} {new} {words} {old}: {rollout.reason}"


def short_revision(revision: str) -> str:
    """A revision for a person: some of the weights' digest, and that of the settings."""
    weights, _, settings = revision.partition("-")
    return f"{weights[:8]}-{settings}" if settings else weights[:8]
