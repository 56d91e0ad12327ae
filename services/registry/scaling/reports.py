"""What nodes and routers told last, smoothed over a few seconds, and summed up for decisions. Pure.

What is a time ago fades by how long a report covers, so reports may come at any pace. Where nothing was computed steps waited for
nothing: that counts as no wait.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stagemesh.v1.registry_pb2 import LoadReport, ReplicaReport

from .limits import Limits
from .load import ModelLoad, StageLoad

SMOOTHED_S = 3.0
"""Of what was so long ago, a third still counts."""
REPORTS_PER_S = 1_000
FRESH_S = 5.0
"""Who has said nothing for so long, or for three periods, is not heard of."""


@dataclass(slots=True)
class _Replica:
    at: float
    node: str
    queue_ms: float = 0.0
    busy: float = 0.0
    kv: float = 0.0
    passes_per_s: float = 0.0
    running: int = 0
    waiting: int = 0


@dataclass(slots=True)
class _Router:
    at: float
    active: int = 0
    waiting: int = 0
    held: int = 0


def period_s(reporters: int) -> float:
    """How often each of so many reports, in seconds: once a second, less often where one process could not take that in."""
    return max(1.0, reporters / REPORTS_PER_S)


class Reports:
    """The newest of every replica and of every router's models."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._routers: dict[str, dict[str, _Router]] = {}
        self._heard: dict[str, float] = {}
        self._requested: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Reports(replicas={len(self._replicas)}, reporters={len(self._heard)})"

    def take(self, report: LoadReport, now: float) -> None:
        """A node or a router reports; `now` in seconds."""
        self._heard[report.reporter] = now
        weight = 1 - math.exp(-report.covers_ms / 1000 / SMOOTHED_S)
        for replica in report.replicas:
            self._take_replica(report.reporter, replica, weight, now)
        if report.models:
            models = self._routers.setdefault(report.reporter, {})
            for model in report.models:
                models[model.model] = _Router(now, model.active, model.waiting, model.held)
                if model.arrivals or model.active or model.waiting or model.held:
                    self._requested[model.model] = now

    def _take_replica(self, node: str, told: ReplicaReport, weight: float, now: float) -> None:
        seen = self._replicas.get(told.replica_id)
        if seen is None:
            seen = self._replicas[told.replica_id] = _Replica(now, node)
        seen.at = now
        seen.queue_ms += weight * (_sane(told.queue_ms) - seen.queue_ms)
        seen.busy += weight * (min(_sane(told.busy), 1.0) - seen.busy)
        seen.passes_per_s += weight * (_sane(told.passes_per_s) - seen.passes_per_s)
        seen.kv = min(_sane(told.kv), 1.0)
        seen.running, seen.waiting = told.running, told.waiting
        if told.running:
            self._requested[told.model] = now

    def load(
        self,
        model: str,
        limits: Limits,
        wanted: Sequence[int],
        ready: Sequence[Sequence[str]],
        *,
        routers: Collection[str],
        now: float,
        awake_because: str = "",
        idle_s: float | None = None,
    ) -> ModelLoad:
        """A model's load.

        Args:
            wanted: replicas decided last, of each stage.
            ready: ids of the replicas that serve, of each stage.
            routers: ids of those that are there; each has to be heard of before anything shrinks.
            awake_because: see `ModelLoad`.
            idle_s: see `ModelLoad`.
        """
        oldest = now - max(FRESH_S, 3 * period_s(len(self._heard)))
        active = waiting = 0
        for models in self._routers.values():
            told = models.get(model)
            if told is not None and told.at >= oldest:
                active += told.active
                waiting += told.waiting + told.held
        return ModelLoad(
            model=model,
            limits=limits,
            wanted=tuple(wanted),
            stages=tuple(self._stage(replica_ids, oldest) for replica_ids in ready),
            active=active,
            waiting=waiting,
            requested_at=self._requested.setdefault(model, now),
            sure=all(self._heard.get(router, -math.inf) >= oldest for router in routers),
            awake_because=awake_because,
            idle_s=idle_s,
        )

    def busy_of(self, replica_id: str) -> float:
        """Share of the time in which a replica computes; 0 for one that was not heard of."""
        seen = self._replicas.get(replica_id)
        return 0.0 if seen is None else seen.busy

    def _stage(self, replica_ids: Sequence[str], oldest: float) -> StageLoad:
        found = [self._replicas.get(replica_id) for replica_id in replica_ids]
        fresh = [seen for seen in found if seen is not None and seen.at >= oldest]
        if not fresh:
            return StageLoad(len(replica_ids), known=0)
        passes = sum(seen.passes_per_s for seen in fresh)
        return StageLoad(
            len(replica_ids),
            # What a step meets with: a replica counts as often as steps go there.
            sum(seen.queue_ms * seen.passes_per_s for seen in fresh) / passes if passes else 0.0,
            sum(seen.busy for seen in fresh) / len(fresh),
            sum(seen.kv for seen in fresh) / len(fresh),
            len(fresh),
        )

    def requested(self, model: str, now: float) -> None:
        """A request is known of in another way: a model was woken for one, say."""
        self._requested[model] = max(now, self._requested.get(model, -math.inf))

    def forget(self, replicas: Collection[str], models: Collection[str], now: float) -> None:
        """Drop what is not among these, and reporters that fell silent long ago."""
        oldest = now - 10 * max(FRESH_S, 3 * period_s(len(self._heard)))
        for replica_id in [each for each in self._replicas if each not in replicas]:
            del self._replicas[replica_id]
        for model in [each for each in self._requested if each not in models]:
            del self._requested[model]
        for reporter in [each for each, at in self._heard.items() if at < oldest]:
            del self._heard[reporter]
            self._routers.pop(reporter, None)
        for told in self._routers.values():
            for model in [each for each in told if each not in models]:
                del told[model]


def _sane(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0
