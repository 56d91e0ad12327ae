"""What a request makes of a model that is deployed: a rollout, or at once what was asked for. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.revisions import candidate_of, rolls_out
from stagemesh.v1.registry_pb2 import (
    ROLLOUT_STATE_BACKING_OUT,
    ROLLOUT_STATE_DRAINING,
    ROLLOUT_STATE_LOADING,
    ROLLOUT_STATE_SHARING,
    ModelSpec,
    Rollout,
)

HOLD_S = 60
"""How long a share is watched when a canary was asked for without saying how long."""
MIDDLE_SHARE = 0.25
READY_S = 1800
"""A large model from a slow disk takes minutes."""
LONGEST_HOLD_S = 7 * 86400


@dataclass(frozen=True)
class Way:
    """How a candidate takes over: the shares that it gets, and how many seconds each is watched at least."""

    steps: tuple[float, ...] = (1.0,)
    hold_s: int = 0
    kind: str = "update"


def way_of(canary: float, canary_s: int) -> Way:
    """What a request asks for: without a canary all at once, when the candidate is ready; else a share, a quarter, all.

    Raises `InvalidArgument` naming the field.
    """
    if not 0 <= canary <= 1:
        raise InvalidArgument("canary: must be a share within 0..1", field="canary")
    if canary_s > LONGEST_HOLD_S:
        raise InvalidArgument(f"canary_s: at most {LONGEST_HOLD_S}", field="canary_s")
    if not canary:
        if canary_s:
            raise InvalidArgument("canary_s: without a canary there is nothing to watch", field="canary_s")
        return Way()
    steps = [canary, *(share for share in (MIDDLE_SHARE, 1.0) if share > canary)]
    return Way(tuple(steps), canary_s or HOLD_S)


def deployed(
    current: ModelSpec | None, wanted: ModelSpec, way: Way, *, serves: bool, now_ms: int
) -> ModelSpec:
    """The record after `wanted` was asked for.

    The same partitions of the same revision change in place; so does all of a model that has no route (`serves`), since
    nothing would be interrupted. Else `wanted` becomes the candidate of a rollout.

    Raises:
        FailedPrecondition: the rollout of yet another revision has sessions already.
    """
    if current is None:
        return _copy(wanted, now_ms)
    candidate = candidate_of(current)
    spec = _copy(wanted, current.created_unix_ms)
    if wanted.revision == current.revision:
        if candidate is not None:  # back to what is deployed
            spec.rollout.CopyFrom(aborted(current, "what is deployed was deployed again", now_ms).rollout)
        elif current.HasField("rollout"):
            spec.rollout.CopyFrom(current.rollout)
        return spec
    if candidate is not None:
        kept = _copy(current, current.created_unix_ms)
        if wanted.revision == candidate.revision and current.rollout.state != ROLLOUT_STATE_BACKING_OUT:
            created = candidate.created_unix_ms
            kept.rollout.next.CopyFrom(spec)
            kept.rollout.next.created_unix_ms = created
            return kept
        if current.rollout.state != ROLLOUT_STATE_LOADING and serves:
            raise FailedPrecondition(
                f"model {current.name!r}: the rollout of revision {candidate.revision[:12]} is under way; "
                "promote or abort it first",
                field="name",
            )
    if not serves:
        return spec
    return begun(current, spec, way, "", now_ms)


def begun(current: ModelSpec, candidate: ModelSpec, way: Way, reason: str, now_ms: int) -> ModelSpec:
    """The record with a rollout of `candidate` that begins now."""
    spec = _copy(current, current.created_unix_ms)
    own = _copy(candidate, current.created_unix_ms)
    own.ClearField("rollout")
    spec.rollout.CopyFrom(
        Rollout(
            next=own,
            state=ROLLOUT_STATE_LOADING,
            kind=way.kind,
            steps=way.steps,
            hold_s=way.hold_s,
            ready_s=READY_S,
            reason=reason or "its partitions are being loaded",
            started_unix_ms=now_ms,
            step_unix_ms=now_ms,
            from_revision=current.revision,
            to_revision=candidate.revision,
        )
    )
    return spec


def promoted(current: ModelSpec, now_ms: int) -> ModelSpec:
    """The record after an operator said that the candidate is good: every new session goes there.

    Raises `FailedPrecondition` when there is no candidate, or not any more.
    """
    _check(current, {ROLLOUT_STATE_LOADING, ROLLOUT_STATE_SHARING}, "promote")
    spec = _copy(current, current.created_unix_ms)
    rollout = spec.rollout
    if rollout.state == ROLLOUT_STATE_LOADING:  # nothing is sent to what is not there: as soon as it is ready
        rollout.steps[:] = [1.0]
        rollout.hold_s = 0
        rollout.reason = "promoted by an operator: all of it, as soon as it is ready"
        return spec
    rollout.state = ROLLOUT_STATE_DRAINING
    rollout.share = 1.0
    rollout.step = len(rollout.steps) - 1
    rollout.step_unix_ms = max(now_ms, rollout.step_unix_ms + 1)
    rollout.reason = "promoted by an operator"
    return spec


def aborted(current: ModelSpec, reason: str, now_ms: int) -> ModelSpec:
    """The record after the candidate was rejected; its sessions come to their end first.

    Raises `FailedPrecondition` when there is none.
    """
    _check(
        current,
        {ROLLOUT_STATE_LOADING, ROLLOUT_STATE_SHARING, ROLLOUT_STATE_DRAINING, ROLLOUT_STATE_BACKING_OUT},
        "abort",
    )
    spec = _copy(current, current.created_unix_ms)
    rollout = spec.rollout
    if rollout.state != ROLLOUT_STATE_BACKING_OUT:
        rollout.state = ROLLOUT_STATE_BACKING_OUT
        rollout.share = 0.0
        rollout.step_unix_ms = max(now_ms, rollout.step_unix_ms + 1)
        rollout.reason = reason
    return spec


def scale_candidate(spec: ModelSpec, replicas: int, stage: int | None) -> None:
    """What is scaled while a rollout is under way is so after it: in place, where the candidate has that stage."""
    if not rolls_out(spec):
        return
    candidate = spec.rollout.next
    stages = range(len(candidate.partitions)) if stage is None else [stage]
    if stage is not None and len(candidate.partitions) != len(spec.partitions):
        return
    for each in stages:
        candidate.replicas[each] = replicas


def _check(spec: ModelSpec, states: Collection[int], what: str) -> None:
    if not rolls_out(spec) or spec.rollout.state not in states:
        raise FailedPrecondition(f"model {spec.name!r}: there is no rollout to {what}", field="name")


def _copy(spec: ModelSpec, created_unix_ms: int) -> ModelSpec:
    copy = ModelSpec()
    copy.CopyFrom(spec)
    copy.created_unix_ms = created_unix_ms
    return copy
