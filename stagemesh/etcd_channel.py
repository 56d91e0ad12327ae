"""Channels to the members of an etcd cluster, and calls that fail over between them."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from aetcd import rpc

from stagemesh.endpoints import parse_endpoints
from stagemesh.errors import ConfigError, Unavailable, from_code

log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, Any]] = [
    # etcd closes a connection that pings more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
# What a call can raise: a status, or a complaint that it, or its channel, has ended already.
CALL_ERRORS = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)

# Answers after which another member, or the same one a moment later, may do better.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    if ca is None and cert is None and key is None:
        return None
    if (cert is None) != (key is None):
        raise ConfigError("etcd: a client certificate and its key go together")
    parts = []
    for what, path in (("CA", ca), ("key", key), ("certificate", cert)):
        try:
            parts.append(path.read_bytes() if path is not None else None)
        except OSError as error:
            raise ConfigError(f"etcd: cannot read the {what} file {path}: {error.strerror}") from error
    return grpc.ssl_channel_credentials(*parts)


class EtcdChannel:
    """One gRPC channel per endpoint; `current` is the one in use. Raises `errors.Unavailable` from every call."""

    def __init__(
        self, endpoints: str, *, ca: Path | None, cert: Path | None, key: Path | None, timeout_s: float
    ) -> None:
        self.endpoints = parse_endpoints(endpoints)
        self.timeout_s = timeout_s
        self._credentials = _credentials(ca, cert, key)
        self._channels: list[grpc.aio.Channel] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._index = 0
        self._answered_at = 0.0
        self.connected = False

    def __repr__(self) -> str:
        state = "connected" if self.connected else "unreachable"
        return f"{','.join(self.endpoints)} {state} current={self.endpoints[self._index]}"

    def open(self) -> None:
        """Make the channels; connecting happens at the first call."""
        self._channels = [self._connect(endpoint) for endpoint in self.endpoints]

    def _connect(self, endpoint: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        return grpc.aio.secure_channel(endpoint, self._credentials, options=_OPTIONS)

    async def close(self) -> None:
        """Close every channel; calls in flight are cancelled."""
        channels, self._channels = self._channels, []
        self.connected = False
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(
            *self._closing, *(channel.close() for channel in channels), return_exceptions=True
        )

    @property
    def closed(self) -> bool:
        """Whether there are no channels: not opened yet, or closed."""
        return not self._channels

    @property
    def idle_s(self) -> float:
        """Seconds since etcd last answered."""
        return time.monotonic() - self._answered_at

    @property
    def current(self) -> grpc.aio.Channel:
        """The channel in use; raises `errors.Unavailable` when closed."""
        if not self._channels:
            raise Unavailable("the etcd client is closed")
        return self._channels[self._index]

    def answered(self) -> None:
        """Note that etcd answered."""
        self._answered_at = time.monotonic()
        if not self.connected:
            self.connected = True
            log.info("etcd.connected endpoint=%s", self.endpoints[self._index])

    def turn(self, channel: grpc.aio.Channel, reason: str, *, silent: bool = False) -> None:
        """Use the next endpoint after `channel` failed (nothing if another caller has turned already).

        A connection on which etcd was `silent` may be dead without either end knowing; its channel is replaced.
        """
        if not self._channels or channel is not self._channels[self._index]:
            return
        if self.connected:
            log.warning("etcd.lost endpoint=%s reason=%s", self.endpoints[self._index], reason)
        self.connected = False
        if silent:
            self._channels[self._index] = self._connect(self.endpoints[self._index])
            closing = asyncio.create_task(channel.close(self.timeout_s + 1))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._index = (self._index + 1) % len(self._channels)

    async def kv(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """Call a method of etcd's KV service."""
        return (await self.kv_counted(method, request, timeout_s))[0]

    async def kv_counted(self, method: str, request: Any, timeout_s: float | None = None) -> tuple[Any, int]:
        """As `kv`, and the number of attempts that it took."""
        return await self.call(
            lambda channel, timeout: getattr(rpc.KVStub(channel), method)(request, timeout=timeout), timeout_s
        )

    async def call(
        self, attempt: Callable[[grpc.aio.Channel, float], Awaitable[Any]], timeout_s: float | None = None
    ) -> tuple[Any, int]:
        """Run `attempt(channel, timeout)` on one endpoint after another until one answers; result and attempts.

        Raises `errors.Unavailable` when none does within `timeout_s`, or etcd's own refusal as the error of
        its code.
        """
        total = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + total
        # A silent endpoint may eat only its share of the time.
        share = total / max(2, len(self.endpoints))
        attempts = 0
        while True:
            channel, left = self.current, deadline - time.monotonic()
            attempts += 1
            try:
                result = await attempt(channel, max(0.05, min(left, share)))
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    self.answered()
                    raise from_code(error.code().value[0], f"etcd: {error.details()}") from error
                reason = said(error)
                self.turn(channel, reason, silent=error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
            except TimeoutError:
                reason = "no answer in time"
                self.turn(channel, reason, silent=True)
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                reason = said(error)
            else:
                self.answered()
                return result, attempts
            wait_s = 0.0 if attempts < len(self.endpoints) else random.uniform(0.1, 0.3)
            if time.monotonic() + wait_s >= deadline:
                raise Unavailable(
                    f"etcd at {','.join(self.endpoints)} does not answer: {reason}", retry_after_s=1.0
                )
            await asyncio.sleep(wait_s)


def said(error: BaseException) -> str:
    """What a failed call says, in one line."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error) or type(error).__name__
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = str(error.details() or error.code().name)
    if "Connection refused" in details:
        return "connection refused"
    return details.splitlines()[0][:200]
