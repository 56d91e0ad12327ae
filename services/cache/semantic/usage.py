"""What the caches saved of each model's work, as routers count it. Pure."""

import logging
from collections.abc import Callable

from stagemesh.v1.semantic_pb2 import CacheUsage, ModelCacheReport

from .monitor import HitRate

log = logging.getLogger(__name__)
MAX_MODELS = 1024
DRIFT_SHOWN_S = 3600.0
FIELDS = ("lookups", "exact_hits", "semantic_hits", "tokens_saved", "compute_ms_saved", "bytes_served")


class Usage:
    """Sums by model, and whether the rate of hits has drifted; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.models: dict[str, CacheUsage] = {}
        self.drifts: dict[str, int] = {}
        self.untold = 0
        """Reports about more models than are counted."""
        self._rates: dict[str, HitRate] = {}
        self._drifted_at: dict[str, float] = {}
        self._clock = clock
        self._dirty: set[str] = set()

    def __repr__(self) -> str:
        return f"Usage({len(self.models)} models)"

    def add(self, more: CacheUsage) -> None:
        """A router's counts since it told last."""
        if more.model not in self.models and len(self.models) >= MAX_MODELS:
            self.untold += 1
            return
        held = self.models.setdefault(more.model, CacheUsage(model=more.model))
        for field in FIELDS:
            setattr(held, field, min(getattr(held, field) + getattr(more, field), 2**63))
        self._dirty.add(more.model)
        rate = self._rates.setdefault(more.model, HitRate())
        if drifted := rate.add(more.lookups, more.exact_hits + more.semantic_hits):
            self.drifts[more.model] = self.drifts.get(more.model, 0) + 1
            self._drifted_at[more.model] = self._clock()
            log.warning("cache.hit_rate_drifted model=%s %s to %.3f", more.model, drifted, rate.lately)

    def drifted(self, model: str) -> bool:
        """Whether the rate of hits has drifted within the last hour."""
        return self._clock() - self._drifted_at.get(model, -DRIFT_SHOWN_S) < DRIFT_SHOWN_S

    def write(self, model: str, report: ModelCacheReport) -> None:
        """What is known of a model."""
        report.usage.CopyFrom(self.models.get(model, CacheUsage(model=model)))
        rate = self._rates.get(model)
        if rate is not None:
            report.hit_rate, report.usual_hit_rate = rate.lately, rate.usual
            report.hit_rate_drifted = self.drifted(model)

    def restore(self, saved: CacheUsage) -> None:
        """Sums from before."""
        self.models[saved.model] = saved

    def take_changes(self) -> list[CacheUsage]:
        """The models whose sums have changed since the last call."""
        dirty, self._dirty = self._dirty, set()
        return [self.models[model] for model in sorted(dirty)]
