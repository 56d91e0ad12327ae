"""What a node tells the leading registry of its replicas: what they did since it was last told. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from stagemesh.v1.registry_pb2 import LoadReport, ReplicaReport


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one replica since it was loaded, and what it holds now.

    Attributes:
        passes: that are done.
        queued_us: microseconds that they waited for their turn, in all.
        computed_us: microseconds that they took, in all.
        steps: of a head: that went into passes.
        waited_us: microseconds that these waited before, in all.
        kv: share of KV memory in use, 0..1.
        running: sessions.
        waiting: sessions that have something to compute and are in no pass.
    """

    passes: int
    queued_us: int
    computed_us: int
    steps: int = 0
    waited_us: float = 0.0
    kv: float = 0.0
    running: int = 0
    waiting: int = 0


class Reported(Protocol):
    """A replica as far as reports go."""

    replica_id: str
    model_name: str
    stage: int

    def totals(self) -> Totals:
        """Of now."""


class LoadReports:
    """Makes one report after another; each covers the time since the one before."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._before: dict[str, Totals] = {}

    def make(self, replicas: Iterable[tuple[Reported, str]], covers_s: float) -> LoadReport:
        """The report on these replicas, each with its revision; the first one on a replica only says that it is there."""
        before, self._before = self._before, {}
        report = LoadReport(reporter=self._node_id, covers_ms=max(1, round(covers_s * 1000)))
        for replica, revision in replicas:
            totals = self._before[replica.replica_id] = replica.totals()
            last = before.get(replica.replica_id, totals)
            passes, steps = totals.passes - last.passes, totals.steps - last.steps
            computed_us = totals.computed_us - last.computed_us
            queued_us = (totals.queued_us - last.queued_us) / passes if passes else 0.0
            waited_us = (totals.waited_us - last.waited_us) / steps if steps else 0.0
            report.replicas.append(
                ReplicaReport(
                    replica_id=replica.replica_id,
                    model=replica.model_name,
                    stage=replica.stage,
                    revision=revision,
                    queue_ms=(queued_us + waited_us) / 1000,
                    # A pass is counted when it ends, so a long one may have begun before.
                    busy=min(computed_us / 1e6 / covers_s, 1.0) if covers_s > 0 else 0.0,
                    kv=totals.kv,
                    running=totals.running,
                    waiting=totals.waiting,
                    passes_per_s=passes / covers_s if covers_s > 0 else 0.0,
                    pass_ms=computed_us / 1000 / passes if passes else 0.0,
                )
            )
        return report
