"""On a process's import path: its Prometheus metrics do nothing. For `bench.telemetry` only."""

from typing import Any

import prometheus_client.metrics as metrics


def _nothing(self: Any, *args: Any, **more: Any) -> Any:
    return self


# Looking up a metric by its labels is part of what recording costs.
metrics.MetricWrapperBase.labels = _nothing  # type: ignore[method-assign]
for kind, methods in (
    (metrics.Counter, ("inc",)),
    (metrics.Gauge, ("inc", "dec", "set", "set_function")),
    (metrics.Histogram, ("observe",)),
):
    for method in methods:
        setattr(kind, method, _nothing)
