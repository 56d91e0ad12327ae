"""The cache's Prometheus metrics."""

import time

from prometheus_client import Histogram

from stagemesh import metrics
from stagemesh.entry_store import EntryStore

from .behind import Behind
from .single_flight import SingleFlight

_LATENCY_BUCKETS_S = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


class Measures:
    """`stagemesh_cache_*`: lookups and stores by outcome, time in the store, and what is held."""

    def __init__(self) -> None:
        self._lookups = metrics.tallies("stagemesh_cache_lookups_total", "Lookups by result.", ("result",))
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
                ("invalidations", "Entries dropped as no longer valid since the start."),
                ("computed", "Misses that were given the lease to compute since the start."),
                ("taken_over", "Leases that another one took over since the start."),
                ("coalesced", "Lookups that waited for another one's answer and got it since the start."),
                ("gave_up_waiting", "Lookups that waited in vain since the start."),
                ("waiting_lookups", "Lookups that wait for another one's answer."),
                ("waiting_writes", "Changes that wait to be written behind the memory."),
                ("dropped_writes", "Changes that were not written behind the memory since the start."),
                ("restored", "Entries that came back from behind the memory since the start."),
            )
        }
        # Finding a child through its metric takes a lock and a tuple.
        self._hit, self._miss = (self._lookups.labels(result) for result in ("hit", "miss"))
        self._kept, self._rejected = (self._stores.labels(result) for result in ("stored", "rejected"))
        self._timers = {name: self._seconds.labels(name) for name in ("lookup", "store", "invalidate")}

    def watch(self, store: EntryStore, flights: SingleFlight, behind: Behind) -> None:
        """Read them whenever the metrics are read."""
        leases = flights.leases
        self._held["invalidations"].set_function(lambda: store.stats.invalidated)
        self._held["computed"].set_function(lambda: leases.stats.computed)
        self._held["taken_over"].set_function(lambda: leases.stats.taken_over)
        self._held["coalesced"].set_function(lambda: leases.stats.coalesced)
        self._held["gave_up_waiting"].set_function(lambda: leases.stats.gave_up)
        self._held["waiting_lookups"].set_function(lambda: leases.waiting)
        self._held["waiting_writes"].set_function(lambda: behind.stats.writes_waiting)
        self._held["dropped_writes"].set_function(lambda: behind.stats.writes_dropped)
        self._held["restored"].set_function(lambda: behind.stats.restored)
        self._held["entries"].set_function(lambda: len(store))
        self._held["used_bytes"].set_function(lambda: store.bytes_used)
        self._held["budget_bytes"].set_function(lambda: store.max_bytes)
        self._held["evictions"].set_function(lambda: store.stats.evictions)
        self._held["expirations"].set_function(lambda: store.stats.expirations)

    def lookup(self, *, hit: bool) -> None:
        """Count a lookup."""
        (self._hit if hit else self._miss).inc()

    def store(self, *, kept: bool) -> None:
        """Count an offered value."""
        (self._kept if kept else self._rejected).inc()

    def timed(self, operation: str) -> "_Timer":
        """Measure a block."""
        return _Timer(self._timers[operation])


class _Timer:
    """Written out: as a generator it would cost more than what it measures."""

    __slots__ = ("_metric", "_started")

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._metric.observe(time.perf_counter() - self._started)
