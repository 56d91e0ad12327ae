"""The cache's Prometheus metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from stagemesh import metrics

from .store import EntryStore

_LATENCY_BUCKETS_S = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


class Measures:
    """`stagemesh_cache_*`: lookups and stores by outcome, time in the store, and what is held."""

    def __init__(self) -> None:
        self._lookups = metrics.counter("stagemesh_cache_lookups_total", "Lookups by result.", ("result",))
        self._stores = metrics.counter(
            "stagemesh_cache_stores_total", "Values offered, by what became of them.", ("result",)
        )
        self._seconds = metrics.histogram(
            "stagemesh_cache_operation_seconds",
            "Time spent in the store.",
            ("operation",),
            _LATENCY_BUCKETS_S,
        )
        self._held = {
            name: metrics.gauge(f"stagemesh_cache_{name}", text)
            for name, text in (
                ("entries", "Entries held."),
                ("used_bytes", "Bytes held, keys and overhead included."),
                ("budget_bytes", "Byte budget."),
                ("evictions", "Entries dropped for room since the start."),
                ("expirations", "Entries dropped because their time had passed since the start."),
            )
        }
        for result in ("hit", "miss"):
            self._lookups.labels(result)
        for result in ("stored", "rejected"):
            self._stores.labels(result)

    def watch(self, store: EntryStore) -> None:
        """Read `store` whenever the metrics are read."""
        self._held["entries"].set_function(lambda: len(store))
        self._held["used_bytes"].set_function(lambda: store.bytes_used)
        self._held["budget_bytes"].set_function(lambda: store.max_bytes)
        self._held["evictions"].set_function(lambda: store.stats.evictions)
        self._held["expirations"].set_function(lambda: store.stats.expirations)

    def lookup(self, *, hit: bool) -> None:
        """Count a lookup."""
        self._lookups.labels("hit" if hit else "miss").inc()

    def store(self, *, kept: bool) -> None:
        """Count an offered value."""
        self._stores.labels("stored" if kept else "rejected").inc()

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Measure the block."""
        started = time.perf_counter()
        yield
        self._seconds.labels(operation).observe(time.perf_counter() - started)
