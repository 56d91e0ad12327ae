"""gRPC servers and channels as every service makes them."""

import asyncio
import errno
import logging
import os
import socket
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stagemesh import tracing
from stagemesh.errors import ConfigError
from stagemesh.grpc_accept import server
from stagemesh.grpc_errors import with_errors
from stagemesh.grpc_handlers import HandlerServer
from stagemesh.process import run, serve_until_signal

__all__ = [
    "MAX_MESSAGE_BYTES",
    "GrpcServer",
    "channel_options",
    "create_channel",
    "run",
    "serve_until_signal",
]

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, Any]]:
    """Options for both ends: keepalive (a peer that no longer answers is noticed within 3 s) and the largest message, in bytes."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 1_000),
        ("grpc.keepalive_timeout_ms", 1_700),
        # Of any ping: one that measures bandwidth may be under way, and then no other is sent.
        ("grpc.http2.ping_timeout_ms", 1_700),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ]


def create_channel(
    address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES, options: list[tuple[str, Any]] | None = None
) -> grpc.aio.Channel:
    """An insecure channel to `host:port`; it reconnects within a second of the peer's return."""
    merged = [
        *channel_options(max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
        *(options or []),
    ]
    return tracing.traced(grpc.aio.insecure_channel(address, options=merged))


class GrpcServer:
    """A server that translates errors, continues traces, and offers `grpc.health.v1` and reflection.

    Add servicers to `server`, then `start`. Health is NOT_SERVING until `set_serving(True)`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_concurrent_rpcs: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        bare = server(
            [*channel_options(max_message_bytes), ("grpc.so_reuseport", 0)],
            max_concurrent_rpcs,
        )
        self.server: grpc.aio.Server = HandlerServer(bare, [with_errors, *tracing.server_wraps()])
        self._health = health.aio.HealthServicer()
        self._services: list[str] = []
        self._state = "new"

    def __repr__(self) -> str:
        return f"<GrpcServer {self.host}:{self.port} {self._state} services={','.join(self._services)}>"

    async def start(self, service_names: list[str]) -> int:
        """Listen and serve; the bound port. Raises `errors.ConfigError` when the port cannot be had."""
        self._services = list(service_names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.server)
        await self.set_serving(False)
        # Looked at first, since gRPC prints its own lines when it cannot bind.
        if problem := await asyncio.to_thread(port_problem, self.host, self.port):
            raise ConfigError(problem)
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        try:
            bound = self.server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise ConfigError(_taken(self.host, self.port)) from error
        if not bound:
            raise ConfigError(_taken(self.host, self.port))
        await self.server.start()
        self.port, self._state = bound, "started"
        log.info("grpc.started address=%s:%d", self.host, bound)
        return bound

    async def set_serving(self, serving: bool, service: str = "") -> None:
        """Set the health of `service`; the empty name sets the server's and every service's."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in [service] if service else ["", *self._services]:
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, take no new RPCs, give those in flight `grace_s` seconds, then cancel them."""
        if self._state == "stopped":
            return
        self._state = "stopped"
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


def _taken(host: str, port: int) -> str:
    return f"port {port} is taken: another process listens on {host}:{port}; choose another with --port"


def port_problem(host: str, port: int) -> str:
    """One line on why `host:port` cannot be listened on, or nothing. It tries, so it may block for a look-up."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        return f"host {host!r} cannot be resolved"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _taken(host, port)
        return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    return ""
