"""Which replicas of a stage take part in the balance: outliers are ejected, at most half of a stage. Pure."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stagemesh.v1 import registry_pb2

from .replica import ReplicaHealth
from .slowness import Pace, is_slow, others, pace_of, slow_ones
from .step_times import StepTimes

LOOK_S = 0.25
"""Peers are compared no more often, unless something broke."""
SLOW_FOR_S = 1.0
"""A replica is ejected when it stays slow for this long."""
REASONS = ("failing", "errors", "slow")
"""The gravest first."""

Stage = tuple[str, int]
Record = registry_pb2.ReplicaRecord


@dataclass(frozen=True, slots=True)
class Notice:
    """A replica was ejected for one of `REASONS`; without one it came back, or is `gone`."""

    model: str
    stage: int
    replica_id: str
    reason: str = ""
    gone: bool = False


class Health:
    """The health of every replica. `times` knows a replica's step times; `notice` is told of ejections and returns."""

    def __init__(self, times: Callable[[str], StepTimes]) -> None:
        self.notice: Callable[[Notice], None] = lambda _: None
        self._times = times
        self._known: dict[str, ReplicaHealth] = {}
        # Those that a choice has to ask about, and the stage of those that were ejected once.
        self._troubled: dict[str, ReplicaHealth] = {}
        self._noticed: dict[str, Stage] = {}
        self._looked: dict[Stage, float] = {}
        self._hurry = False

    def __repr__(self) -> str:
        return f"Health(known={len(self._known)}, troubled={self._troubled})"

    def began(self, replica_id: str) -> None:
        """A session was sent to it."""
        known = self._known.get(replica_id)
        if known is not None:  # else it never failed, and there is nothing to fade
            known.began()

    def failed(self, replica_id: str, now: float) -> None:
        """It broke under a session."""
        health = self._troubled[replica_id] = self._of(replica_id)
        health.failed(now)
        self._hurry = True

    def succeeded(self, replica_id: str, now: float) -> None:
        """A session came to its end there."""
        known = self._known.get(replica_id)
        if known is not None:
            known.succeeded(now)

    def words(self, replica_id: str, now: float) -> str:
        """Its state for an operator."""
        known = self._known.get(replica_id)
        return "well" if known is None else known.words(now)

    def forget(self, replica_id: str) -> None:
        """It is gone."""
        self._known.pop(replica_id, None)
        self._troubled.pop(replica_id, None)
        if stage := self._noticed.pop(replica_id, None):
            self.notice(Notice(*stage, replica_id, gone=True))

    def examine(self, stage: Stage, replicas: Sequence[Record], now: float) -> None:
        """Eject, and let back in, what is due among the ready `replicas` of one stage. Call it before a choice."""
        if not self._hurry and now < self._looked.get(stage, -math.inf) + LOOK_S:
            return
        self._hurry = False
        self._looked[stage] = now
        paces = [
            pace_of(each.replica_id, self._times(each.replica_id), each.canary_ms, now) for each in replicas
        ]
        due: list[tuple[str, Pace]] = []
        slow = {each.replica_id for each in slow_ones(paces)}
        for pace in paces:
            name = pace.replica_id
            if name in slow:
                self._troubled[name] = self._of(name)
            health = self._troubled.get(name)
            if health is None:
                continue
            self._settle(stage, paces, pace, health, now)
            health.slow_since = min(health.slow_since, now) if name in slow else math.inf
            if health.ejection is None and (health.due or now >= health.slow_since + SLOW_FOR_S):
                due.append((health.due or "slow", pace))
            if not health.troubled(now) and name not in slow:
                del self._troubled[name]
        room = len(replicas) // 2 - sum(self._is_ejected(each.replica_id) for each in replicas)
        for reason, pace in sorted(due, key=lambda each: REASONS.index(each[0]))[: max(room, 0)]:
            self._eject(stage, pace, reason, now)

    def pick(
        self, replicas: Sequence[Record], now: float, rng: random.Random, *, canary: bool
    ) -> Sequence[Record]:
        """Those that a policy may choose from: the well ones; where there are none those held back, else the ejected.

        With `canary` it may be one of the others alone, which the session is to try.
        """
        if not self._troubled:
            return replicas
        usable: list[Record] = []
        held: list[Record] = []
        ejected: list[Record] = []
        for each in replicas:
            health = self._troubled.get(each.replica_id)
            if health is None:
                usable.append(each)
            elif canary and health.takes_canary(now):
                health.canary(now)
                return [each]
            elif health.ejection is not None:
                health.passed_over()
                ejected.append(each)
            elif health.usable() and rng.random() < health.share(now):
                usable.append(each)
            else:
                held.append(each)
        return usable or held or ejected

    def _settle(
        self, stage: Stage, paces: Sequence[Pace], pace: Pace, health: ReplicaHealth, now: float
    ) -> None:
        """Believe what its canary, if one went there, has shown."""
        times = self._times(pace.replica_id)
        ejection = health.ejection
        if ejection is None:
            health.settle(now, times.peak_at)
            return
        if not health.canary_ended(times.peak_at, now):
            return
        if ejection.reason == "slow":
            ms = times.mean_since(health.canary_at)
            if ms is None:
                health.next_canary()  # it told nothing to judge by
                return
            if is_slow(ms, ejection.normal_ms, others(paces, pace.replica_id)):
                self._eject(stage, pace, "slow", now)
                return
        if not health.canary_did_well():
            return
        health.rejoin(now)
        self.notice(Notice(*stage, pace.replica_id))

    def _eject(self, stage: Stage, pace: Pace, reason: str, now: float) -> None:
        health = self._of(pace.replica_id)
        before = health.ejection
        health.eject(reason, now, before.normal_ms if before else pace.normal_ms)
        self._noticed[pace.replica_id] = stage
        self.notice(Notice(*stage, pace.replica_id, reason))

    def _is_ejected(self, replica_id: str) -> bool:
        health = self._troubled.get(replica_id)
        return health is not None and health.ejection is not None

    def _of(self, replica_id: str) -> ReplicaHealth:
        known = self._known.get(replica_id)
        if known is None:
            known = self._known[replica_id] = ReplicaHealth()
        return known
