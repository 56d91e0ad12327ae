"""How each revision of a model does while a rollout is under way, counted for the registry, which judges it. Pure.

What runs is always counted, since a rollout ends only when nobody is on the old revision any more; it may have begun before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagemesh.errors import CheckpointError, DeadlineExceeded, InternalError, StagemeshError, Unavailable
from stagemesh.revisions import rolls_out, specs_of
from stagemesh.v1.registry_pb2 import ModelReport, ModelSpec, RevisionTrial

BUCKETS = 96
"""See `RevisionTrial.pace`."""
_FAULTS = (InternalError, Unavailable, DeadlineExceeded, CheckpointError)


@dataclass(slots=True)
class _Tally:
    step_unix_ms: int
    requests: int = 0
    errors: int = 0
    pace: list[int] = field(default_factory=lambda: [0] * BUCKETS)


class Trials:
    """`models` are the records as this router knows them."""

    def __init__(self, models: Mapping[str, ModelSpec]) -> None:
        self._models = models
        self._running: dict[tuple[str, str], int] = {}
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def __repr__(self) -> str:
        return f"Trials(running={self._running}, counted={len(self._tallies)})"

    def began(self, model: str, revision: str) -> None:
        """A request is to go to this revision."""
        key = model, revision
        self._running[key] = self._running.get(key, 0) + 1

    def over(self, model: str, revision: str) -> None:
        """It is answered, or not to be."""
        key = model, revision
        left = self._running.get(key, 0) - 1
        if left > 0:
            self._running[key] = left
        else:
            self._running.pop(key, None)

    def ended(self, model: str, revision: str, *, failed: bool, pace_ms: float | None) -> None:
        """How a request went that the mesh was asked for: milliseconds for each token, None where that says nothing."""
        spec = self._models.get(model)
        if spec is None or not rolls_out(spec):
            return
        tally = self._tallies.get((model, revision))
        if tally is None or tally.step_unix_ms != spec.rollout.step_unix_ms:
            tally = self._tallies[model, revision] = _Tally(spec.rollout.step_unix_ms)
        tally.requests += 1
        tally.errors += failed
        if not failed and pace_ms is not None:
            tally.pace[bucket_of(pace_ms)] += 1

    def running(self, model: str, revision: str) -> int:
        """Requests of this revision that are under way."""
        return self._running.get((model, revision), 0)

    def add_to(self, reports: dict[str, ModelReport]) -> None:
        """Add to each model's report how its revisions do; one for each rollout, asked for or not."""
        rolling = {name: spec for name, spec in self._models.items() if rolls_out(spec)}
        for key in [key for key in self._tallies if key[0] not in rolling]:
            del self._tallies[key]
        for name, spec in rolling.items():
            report = reports.setdefault(name, ModelReport(model=name))
            report.trials.extend(self._trial(spec, one.revision) for one in specs_of(spec))

    def _trial(self, spec: ModelSpec, revision: str) -> RevisionTrial:
        step = spec.rollout.step_unix_ms
        tally = self._tallies.get((spec.name, revision))
        if tally is None or tally.step_unix_ms != step:
            tally = _Tally(step)
        return RevisionTrial(
            revision=revision,
            step_unix_ms=step,
            generation=spec.generation,
            requests=tally.requests,
            errors=tally.errors,
            running=self.running(spec.name, revision),
            pace=tally.pace,
        )


def bucket_of(milliseconds: float) -> int:
    """Four to a doubling, from 1/64 ms on; what is beyond lies in the last one."""
    return min(BUCKETS - 1, max(0, math.floor(4 * math.log2(max(milliseconds, 1e-9) * 64))))


def is_fault(error: BaseException | None) -> bool:
    """Whether the mesh or the model failed, not its caller, and not for want of room."""
    if isinstance(error, StagemeshError):
        return isinstance(error, _FAULTS)
    return isinstance(error, Exception)  # a caller who leaves is none
