"""Where a session's time went, summed per stage from the hop records that came back with its results."""

from collections.abc import Iterable

from stagemesh.v1.stage_pb2 import HopRecord, ReplicaLoad, StageTiming


class Timings:
    """Sums per stage, and the last load that each replica reported."""

    def __init__(self) -> None:
        self._stages: dict[int, StageTiming] = {}
        self.loads: dict[str, ReplicaLoad] = {}

    def add(self, hops: Iterable[HopRecord]) -> None:
        """Count the hops of one pass."""
        for hop in hops:
            timing = self._stages.get(hop.stage)
            if timing is None:
                timing = self._stages[hop.stage] = StageTiming(stage=hop.stage, replica_id=hop.replica_id)
            timing.steps += 1
            timing.queue_us += hop.queue_us
            timing.compute_us += hop.compute_us
            timing.encode_us += hop.encode_us
            timing.network_us += hop.network_us
            timing.bubble_us += hop.bubble_us
            timing.rows += hop.rows
            if hop.HasField("load"):  # told rarely
                self.loads[hop.replica_id] = hop.load

    def stages(self) -> list[StageTiming]:
        """The sums, stage 0 first."""
        return [self._stages[stage] for stage in sorted(self._stages)]
