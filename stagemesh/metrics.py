"""Prometheus metrics: one registry per process, made once per name however often a part is built."""

import threading
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from stagemesh.errors import ConfigError
from stagemesh.tallies import Tallies

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. Steps of a stage take milliseconds, whole generations minutes.
LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
SIZE_BUCKETS_BYTES = tuple(float(4**power) for power in range(4, 15))

_made: dict[str, Any] = {}
_lock = threading.Lock()

T = TypeVar("T", Counter, Gauge, Histogram, Tallies)


def _once(kind: type[T], name: str, text: str, labels: tuple[str, ...], **extra: Any) -> T:
    with _lock:
        if name not in _made:
            made = _made[name] = kind(name, text, labels, **extra)
            REGISTRY.register(made)
        found = _made[name]
    if not isinstance(found, kind):
        raise ValueError(f"{name} is a {type(found).__name__} already")
    return found


def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    """The process's counter of that name (`stagemesh_..._total`)."""
    return _once(Counter, name, text, labels, registry=None)


def tallies(name: str, text: str, labels: tuple[str, ...]) -> Tallies:
    """The process's counter of that name, for where one thread counts and every microsecond does, too."""
    return _once(Tallies, name, text, labels)


def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    """The process's gauge of that name, unit at its end."""
    return _once(Gauge, name, text, labels, registry=None)


def histogram(
    name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = LATENCY_BUCKETS_S
) -> Histogram:
    """The process's histogram of that name; by default of latencies, in seconds."""
    return _once(Histogram, name, text, labels, registry=None, buckets=buckets)


def render() -> bytes:
    """All metrics in the Prometheus text format (`CONTENT_TYPE`)."""
    return generate_latest(REGISTRY)


class MetricsServer:
    """A small HTTP server in a thread of its own; `port` is the bound one."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve_metrics(port: int, host: str = "127.0.0.1") -> MetricsServer | None:
    """Serve `/metrics` on `host:port`; None when `port` is 0. Raises `errors.ConfigError` for a taken port."""
    if port == 0:
        return None
    try:
        server, thread = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise ConfigError(
            f"metrics port {port} is taken or cannot be used: {error.strerror or error}"
        ) from error
    return MetricsServer(server, thread)
