"""A watch that never ends by itself and never silently misses a change.

The watch lists the prefix (`Snapshot`), then streams from the next revision (`Change`). Every second or so it
compares cheaply what it has seen with what the store says; a missed change, an error, the end of the stream or a
compaction leads to a new list. It lists anew, rather than resuming the stream, after every break: a store that
was restored or restarted empty may be at any revision.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd import rpc

from stagemesh.errors import StagemeshError
from stagemesh.etcd_channel import CALL_ERRORS, EtcdChannel, said

log = logging.getLogger(__name__)

_CHECK_S = 1.5
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of the prefix at `revision`; it replaces whatever was known before."""

    items: dict[str, bytes]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key was put (`value`) or removed (`None`) at `revision`."""

    key: str
    value: bytes | None
    revision: int


class _Broken(Exception):
    """The stream can no longer be relied on."""


def prefix_end(prefix: str) -> bytes:
    """The first key after all keys that start with `prefix`, as etcd's `range_end`."""
    raw = prefix.encode().rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"


async def watch_prefix(
    channel: EtcdChannel, prefix: str, read: Callable[[], Awaitable[tuple[dict[str, bytes], int]]]
) -> AsyncGenerator[Snapshot | Change, None]:
    """Yield a `Snapshot`, its `Change`s, and after each break a new `Snapshot`; until the client is closed."""
    retry_s = _FIRST_RETRY_S
    while not channel.closed:
        try:
            items, revision = await read()
            yield Snapshot(items, revision)
            stream = _Stream(channel, prefix, set(items), revision)
            try:
                await stream.open()
                retry_s = _FIRST_RETRY_S
                while True:
                    for change in await stream.next():
                        yield change
            finally:
                stream.cancel()
        except (StagemeshError, _Broken) as error:
            if channel.closed:
                return
            log.warning("etcd.watch.broken prefix=%s: %s", prefix, error)
        await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
        retry_s = min(_LAST_RETRY_S, retry_s * 2)


class _Stream:
    """One watch stream and what it has delivered: the keys alive and the last revision seen."""

    def __init__(self, channel: EtcdChannel, prefix: str, keys: set[str], revision: int) -> None:
        self._channel = channel
        self._prefix = prefix
        self._keys = keys
        self._revision = revision
        self._call: Any = None
        self._used: grpc.aio.Channel | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._check_at = 0.0
        self._suspect: tuple[int, int] | None = None

    async def open(self) -> None:
        self._used = self._channel.current
        # A member cut off from its cluster ends the stream rather than keeping quiet.
        self._call = rpc.WatchStub(self._used).Watch(metadata=(("hasleader", "true"),))
        create = rpc.WatchCreateRequest(
            key=self._prefix.encode() or b"\0",
            range_end=prefix_end(self._prefix),
            start_revision=self._revision + 1,
        )
        try:
            async with asyncio.timeout(self._channel.timeout_s):
                await self._call.write(rpc.WatchRequest(create_request=create))
                reply = await self._call.read()
        except TimeoutError as error:
            self._channel.turn(self._used, "watch not created in time", silent=True)
            raise _Broken("not created in time") from error
        except CALL_ERRORS as error:
            self._channel.turn(self._used, "watch refused")
            raise _Broken(said(error)) from error
        if reply is grpc.aio.EOF or not reply.created or reply.canceled:
            raise _Broken("not created")
        self._check_at = time.monotonic() + _CHECK_S

    async def next(self) -> list[Change]:
        """The next changes; an empty list after a check that found nothing wrong. Raises `_Broken`."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        await asyncio.wait({self._reading}, timeout=max(0.0, self._check_at - time.monotonic()))
        if not self._reading.done():
            await self._check()
            return []
        done, self._reading = self._reading, None
        if done.cancelled():
            raise _Broken("its channel was replaced")
        try:
            reply = done.result()
        except CALL_ERRORS as error:
            assert self._used is not None
            self._channel.turn(self._used, said(error))
            raise _Broken(said(error)) from error
        if reply is grpc.aio.EOF:
            raise _Broken("the stream ended")
        if reply.compact_revision:
            raise _Broken(f"compacted at revision {reply.compact_revision}")
        if reply.canceled:
            raise _Broken(f"cancelled by etcd: {reply.cancel_reason or 'no reason given'}")
        self._channel.answered()
        return [self._take(event) for event in reply.events]

    def cancel(self) -> None:
        if self._reading is not None:
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._reading.cancel()
        if self._call is not None:
            self._call.cancel()

    def _take(self, event: Any) -> Change:
        key, revision = event.kv.key.decode(), int(event.kv.mod_revision)
        self._revision = max(self._revision, revision)
        if event.type == rpc.Event.DELETE:
            self._keys.discard(key)
            return Change(key, None, revision)
        self._keys.add(key)
        return Change(key, event.kv.value, revision)

    async def _check(self) -> None:
        """Ask the store for the number of keys and the newest change beyond what was delivered."""
        request = rpc.RangeRequest(
            key=self._prefix.encode() or b"\0",
            range_end=prefix_end(self._prefix),
            min_mod_revision=self._revision + 1,
            keys_only=True,
            limit=1,
        )
        reply = await self._channel.kv("Range", request, timeout_s=2.0)
        self._check_at = time.monotonic() + _CHECK_S
        if reply.header.revision < self._revision:
            raise _Broken("the store went back in time")
        if reply.count == len(self._keys) and not reply.kvs:
            self._suspect = None
            return
        # The answer may have overtaken changes that are on their way; only a second look that finds nothing
        # delivered in between is a stall.
        seen = (self._revision, len(self._keys))
        if self._suspect == seen:
            raise _Broken("changes were not delivered")
        self._suspect = seen
