"""On a process's import path: SIGUSR1 makes its Prometheus metrics do nothing, SIGUSR2 lets them record again.

For `bench.telemetry` only, which compares the same processes with and without.
"""

import signal
import sys
from typing import Any

import prometheus_client.metrics as metrics

# Looking up a metric by its labels is part of what recording costs.
_METHODS = (
    (metrics.MetricWrapperBase, "labels"),
    (metrics.Counter, "inc"),
    (metrics.Gauge, "inc"),
    (metrics.Gauge, "dec"),
    (metrics.Gauge, "set"),
    (metrics.Histogram, "observe"),
)
_REAL = [getattr(kind, name) for kind, name in _METHODS]
_OWN = (
    ("stagemesh.services.stage.metrics", "PassTimes", "observe"),
    ("stagemesh.tallies", "Tally", "inc"),
    ("stagemesh.tallies", "Tallies", "count"),
)


def _nothing(self: Any, *args: Any, **more: Any) -> Any:
    return self


def _switch(number: int, frame: object) -> None:
    for (kind, name), real in zip(_METHODS, _REAL, strict=True):
        setattr(kind, name, _nothing if number == signal.SIGUSR1 else real)
    # A stage counts its passes' times itself, and routers and caches have counters of their own (to find one costs a dict).
    for module, owner, method in _OWN:
        own = getattr(sys.modules.get(module), owner, None)
        if own is not None:
            own.real = getattr(own, "real", getattr(own, method))
            setattr(own, method, _nothing if number == signal.SIGUSR1 else own.real)


signal.signal(signal.SIGUSR1, _switch)
signal.signal(signal.SIGUSR2, _switch)
