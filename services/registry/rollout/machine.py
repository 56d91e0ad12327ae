"""The states of a rollout, and what leads from one to the next. Pure: all that it goes by is the record, and what is seen.

    LOADING -> SHARING (step by step) -> DRAINING -> DONE
       |          |                         |
       |          +------> BACKING_OUT <----+        (a worse candidate; an operator)
       +---------------------> ROLLED_BACK <- BACKING_OUT

What is deployed keeps its replicas until DONE, the candidate keeps its own from its first session until nobody is on it, so at
no time is a session sent to what is not there, and until DONE there is a way back.
"""

from dataclasses import dataclass

from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import (
    ROLLOUT_STATE_BACKING_OUT,
    ROLLOUT_STATE_DONE,
    ROLLOUT_STATE_DRAINING,
    ROLLOUT_STATE_LOADING,
    ROLLOUT_STATE_ROLLED_BACK,
    ROLLOUT_STATE_SHARING,
    ModelSpec,
    Rollout,
)

MOST_FAILURES = 3
"""Loads of one stage that failed: what is wrong is the candidate, not a node."""
QUIET_HOLDS = 10
"""A step with few requests lasts at most so many times as long as it should."""


@dataclass(frozen=True)
class Limits:
    """Seconds that sessions may take to their end: what routers tell of, and where a router says nothing of itself."""

    drain_s: float = 180.0
    blind_s: float = 30.0


@dataclass(frozen=True)
class Seen:
    """What a registry sees of one rollout.

    Attributes:
        deployed_ready: every stage of what is deployed has a ready replica.
        candidate_ready: the same of the candidate.
        candidate_full: all its replicas are ready that there is room for.
        asleep: the model has no replicas, because nobody asks for it.
        failures: loads of the candidate's worst stage that failed; `failure` says how.
        worse: why the candidate is worse; empty: nothing shows that it is.
        requests: that the candidate answered at this step; `enough`: as many as a judgement needs.
        old, new: sessions on what is deployed, and on the candidate; None: not every router has told.
        blind: a router does not tell at all.
    """

    deployed_ready: bool = True
    candidate_ready: bool = False
    candidate_full: bool = False
    asleep: bool = False
    failures: int = 0
    failure: str = ""
    worse: str = ""
    requests: int = 0
    enough: bool = False
    old: int | None = None
    new: int | None = None
    blind: bool = False


@dataclass(frozen=True)
class Advance:
    """The record to write, and the event that tells of it."""

    spec: ModelSpec
    kind: str
    reason: str


def advance(spec: ModelSpec, seen: Seen, now_ms: int, limits: Limits) -> Advance | None:
    """The next step of the model's rollout; None: everything stays as it is."""
    if not rolls_out(spec):
        return None
    rollout = spec.rollout
    # A clock of another machine may be behind the one that wrote the record.
    waited_s = max(0, now_ms - rollout.step_unix_ms) / 1000
    if rollout.state == ROLLOUT_STATE_LOADING:
        return _loading(spec, seen, waited_s, now_ms)
    if rollout.state == ROLLOUT_STATE_SHARING:
        return _sharing(spec, seen, waited_s, now_ms)
    left = seen.old if rollout.state == ROLLOUT_STATE_DRAINING else seen.new
    if left and waited_s < limits.drain_s:
        return None
    if left is None and waited_s < (limits.blind_s if seen.blind else limits.drain_s):
        return None
    still = f", {left} sessions were still under way" if left else ""
    if rollout.state == ROLLOUT_STATE_DRAINING:
        return _done(spec, f"{rollout.reason}{still}", now_ms)
    return _taken_back(spec, f"{rollout.reason}{still}", now_ms)


def _loading(spec: ModelSpec, seen: Seen, waited_s: float, now_ms: int) -> Advance | None:
    rollout = spec.rollout
    if seen.asleep:
        return _done(spec, "nobody uses the model: there is nothing to compare with", now_ms)
    if seen.candidate_ready and not seen.deployed_ready:
        return _done(spec, "what was deployed does not serve, the candidate does", now_ms)
    if seen.failures >= MOST_FAILURES:
        return _taken_back(spec, f"it could not be loaded: {seen.failure}", now_ms)
    if seen.candidate_ready and seen.candidate_full:
        return _step(spec, 0, "every stage of it serves", now_ms)
    if waited_s >= rollout.ready_s:
        return _taken_back(spec, f"it was not ready within {rollout.ready_s} s", now_ms)
    return None


def _sharing(spec: ModelSpec, seen: Seen, waited_s: float, now_ms: int) -> Advance | None:
    rollout = spec.rollout
    if seen.worse:
        return _backing_out(spec, seen.worse, now_ms)
    if seen.failures >= MOST_FAILURES:
        return _backing_out(spec, f"it could not be loaded again: {seen.failure}", now_ms)
    if not seen.candidate_ready:
        if waited_s >= max(rollout.ready_s, rollout.hold_s * QUIET_HOLDS):
            return _backing_out(spec, "a stage of it does not serve any more", now_ms)
        return None
    if waited_s < rollout.hold_s or not (seen.enough or waited_s >= rollout.hold_s * QUIET_HOLDS):
        return None
    nth = rollout.step + 1
    watched = f"{seen.requests} requests in {waited_s:.0f} s show nothing worse" if rollout.hold_s else ""
    if nth < len(rollout.steps):
        return _step(spec, nth, watched, now_ms)
    after = _copy(spec, ROLLOUT_STATE_DRAINING, watched or "it serves all new sessions", now_ms)
    after.rollout.share = 1.0
    return Advance(after, "rollout.draining", f"the candidate takes over: {after.rollout.reason}")


def _step(spec: ModelSpec, nth: int, why: str, now_ms: int) -> Advance:
    after = _copy(spec, ROLLOUT_STATE_SHARING, why, now_ms)
    after.rollout.step = nth
    after.rollout.share = spec.rollout.steps[nth]
    kind = "rollout.canary" if nth == 0 and after.rollout.share < 1 else "rollout.share"
    return Advance(after, kind, f"{after.rollout.share:.0%} of new sessions go to the candidate: {why}")


def _backing_out(spec: ModelSpec, why: str, now_ms: int) -> Advance:
    after = _copy(spec, ROLLOUT_STATE_BACKING_OUT, why, now_ms)
    after.rollout.share = 0.0
    return Advance(after, "rollout.rollback", f"the candidate is taken back: {why}")


def _taken_back(spec: ModelSpec, why: str, now_ms: int) -> Advance:
    after = _copy(spec, ROLLOUT_STATE_ROLLED_BACK, why, now_ms)
    after.rollout.share = 0.0
    after.rollout.ClearField("next")
    return Advance(after, "rollout.rolled_back", f"revision {spec.revision[:12]} stays: {why}")


def _done(spec: ModelSpec, why: str, now_ms: int) -> Advance:
    after = ModelSpec()
    after.CopyFrom(spec.rollout.next)
    after.generation, after.created_unix_ms = spec.generation, spec.created_unix_ms
    summary = Rollout()
    summary.CopyFrom(spec.rollout)
    summary.ClearField("next")
    summary.state, summary.share = ROLLOUT_STATE_DONE, 1.0
    summary.reason, summary.step_unix_ms = why, max(now_ms, spec.rollout.step_unix_ms + 1)
    after.rollout.CopyFrom(summary)
    return Advance(after, "rollout.done", f"revision {after.revision[:12]} took over: {why}")


def _copy(spec: ModelSpec, state: int, reason: str, now_ms: int) -> ModelSpec:
    after = ModelSpec()
    after.CopyFrom(spec)
    after.rollout.state = state  # type: ignore[assignment]
    after.rollout.reason = reason
    # No two steps have the same time, whatever the clocks say: counts belong to one of them.
    after.rollout.step_unix_ms = max(now_ms, spec.rollout.step_unix_ms + 1)
    return after
