"""What a replica tells of its passes: the record that travels with a frame, its load, and the metrics."""

import time

from stagemesh import tracing
from stagemesh.v1.stage_pb2 import STEP_KIND_PREFILL, HopRecord, ReplicaLoad

from . import metrics
from .jobs import Timing
from .pass_costs import PassCosts
from .passes import Work

# The load travels with a session's first pass, and otherwise at most that often.
LOAD_PERIOD_S = 0.1
_MOST_US = 2**31


class Account:
    """Records of one replica's passes.

    Attributes:
        occupied_since: Unix seconds at which the replica got its first session of those it has now; time without
            any session is no bubble.
        costs: of prompts and decode steps.
    """

    def __init__(self, replica_id: str, model_name: str, stage: int) -> None:
        self.occupied_since = 0.0
        self.costs = PassCosts()
        self._replica_id = replica_id
        self._stage = stage
        self._times = metrics.pass_times(model_name, stage)
        self._together = metrics.TOGETHER.labels(model_name, str(stage))
        self._load_told = 0.0

    def load_is_due(self, work: Work) -> bool:
        """Whether the record of this pass should tell the load: once a period, and with a session's first pass."""
        now = time.monotonic()
        if now - self._load_told < LOAD_PERIOD_S:
            for session in work.sessions:
                if not session.passes:
                    break
            else:
                return False
        self._load_told = now
        return True

    def hop(self, timing: Timing, work: Work, load: ReplicaLoad | None) -> HopRecord:
        """The record of a pass, its `encode_us` still to come."""
        last = work.batch.segments[-1]
        return HopRecord(
            stage=self._stage,
            replica_id=self._replica_id,
            queue_us=timing.queue_us,
            compute_us=timing.compute_us,
            network_us=work.network_us,
            bubble_us=min(timing.idle_us(self.occupied_since), _MOST_US),
            rows=last.start + last.rows,
            load=load,
        )

    def passed(self, hop: HopRecord, timing: Timing, work: Work) -> None:
        """Count a pass whose frames are on their way."""
        self._times.observe(hop, timing.sharing)
        if timing.sharing > 1:
            self._together.inc()
        if not work.stateless:
            prompts = sum(step.tokens for _, step in work.steps if step.kind == STEP_KIND_PREFILL)
            self.costs.passed(hop.compute_us, prompts)
        traced = tracing.enabled()
        for session in work.sessions:
            session.passes += 1
            if traced:
                session.record(hop, timing.queued)
