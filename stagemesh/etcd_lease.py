"""A lease that is kept: refreshed at a third of its time, and replaced with all its keys when it was lost."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import grpc
from aetcd import rpc

from stagemesh.errors import NotFound, StagemeshError, Unavailable
from stagemesh.etcd_channel import EtcdChannel

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 0.6
# A write waits this long for etcd before it is left to the lease's task.
_WRITE_TIMEOUT_S = 1.5


class Lease:
    """Keys that live as long as this process does, and `ttl_s` seconds more.

    The lease holds what each of its keys *should* be. A write that etcd did not take (down, lease expired) is
    made again by the lease's own task, so `put` and `delete` succeed while etcd is away. `id` changes when the
    lease had to be granted anew.
    """

    def __init__(self, channel: EtcdChannel, ttl_s: int, *, on_end: Callable[["Lease"], None]) -> None:
        if ttl_s < 1:
            raise ValueError("a lease lives one second at least")
        self.ttl_s = ttl_s
        self.id = 0
        self._channel = channel
        self._on_end = on_end
        self._wanted: dict[str, bytes] = {}
        self._dirty: dict[str, None] = {}
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Lease {self.id:x} ttl={self.ttl_s}s keys={len(self._wanted)} dirty={len(self._dirty)}>"

    async def start(self) -> None:
        """Grant the lease and start its task; raises `errors.Unavailable`."""
        await self._grant()
        self._task = asyncio.create_task(self._supervise(), name="etcd-lease")

    async def put(self, key: str, value: bytes) -> None:
        """Make `key` hold `value` for as long as the lease is held; returns even if etcd is away just now."""
        await self.put_now(key, value)

    async def put_now(self, key: str, value: bytes) -> int:
        """As `put`; returns the store revision, or 0 when etcd was away and the lease's task will write it."""
        if self._ended:
            raise Unavailable("the lease was revoked")
        self._wanted[key] = value
        return await self._write(key)

    async def delete(self, key: str) -> None:
        """Make `key` go away; returns even if etcd is away just now."""
        self._wanted.pop(key, None)
        await self._write(key)

    async def revoke(self) -> None:
        """End the lease and so remove its keys; if etcd is away they go when the lease runs out."""
        if self._ended:
            return
        self._ended = True
        self._on_end(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        async with self._lock:
            request = rpc.LeaseRevokeRequest(ID=self.id)
            try:
                await self._channel.call(
                    lambda channel, timeout: rpc.LeaseStub(channel).LeaseRevoke(request, timeout=timeout),
                    timeout_s=min(2.0, self._channel.timeout_s),
                )
            except NotFound:
                pass
            except StagemeshError as error:
                log.warning("etcd.lease.revoke_failed lease=%x: %s", self.id, error)

    async def _write(self, key: str) -> int:
        self._dirty[key] = None
        try:
            return await self._flush()
        except StagemeshError as error:
            log.warning("etcd.lease.write_deferred key=%s: %s", key, error)
            self._wake.set()
            return 0

    async def _flush(self) -> int:
        """Write every key that differs from what etcd holds."""
        revision = 0
        async with self._lock:
            while self._dirty and not self._ended:
                key = next(iter(self._dirty))
                value = self._wanted.get(key)
                name = key.encode()
                if value is None:
                    reply = await self._channel.kv(
                        "DeleteRange", rpc.DeleteRangeRequest(key=name), _WRITE_TIMEOUT_S
                    )
                else:
                    request = rpc.PutRequest(key=name, value=value, lease=self.id)
                    try:
                        reply = await self._channel.kv("Put", request, _WRITE_TIMEOUT_S)
                    except NotFound:
                        await self._grant(_WRITE_TIMEOUT_S)
                        continue
                revision = int(reply.header.revision)
                if self._wanted.get(key) == value:
                    self._dirty.pop(key, None)
        return revision

    async def _grant(self, timeout_s: float | None = None) -> None:
        request = rpc.LeaseGrantRequest(TTL=self.ttl_s)
        reply, _ = await self._channel.call(
            lambda channel, timeout: rpc.LeaseStub(channel).LeaseGrant(request, timeout=timeout), timeout_s
        )
        if self.id:
            log.warning("etcd.lease.replaced old=%x new=%x keys=%d", self.id, reply.ID, len(self._wanted))
        self.id = int(reply.ID)
        self._dirty.update(dict.fromkeys(self._wanted))

    async def _supervise(self) -> None:
        retry_s = _FIRST_RETRY_S
        wait_s = self._period_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                # Somebody's write failed: try again soon, not at once.
                self._wake.clear()
                await asyncio.sleep(random.uniform(0.5, 1.0) * _FIRST_RETRY_S)
            except TimeoutError:
                pass
            try:
                await self._refresh()
            except StagemeshError as error:
                if retry_s == _FIRST_RETRY_S:
                    log.warning("etcd.lease.refresh_failed lease=%x: %s", self.id, error)
                wait_s = retry_s * random.uniform(0.5, 1.0)
                retry_s = min(_LAST_RETRY_S, retry_s * 2)
            else:
                retry_s, wait_s = _FIRST_RETRY_S, self._period_s

    @property
    def _period_s(self) -> float:
        return self.ttl_s / 3 * random.uniform(0.9, 1.0)

    async def _refresh(self) -> None:
        if await self._keep_alive() <= 0:
            async with self._lock:
                await self._grant(_WRITE_TIMEOUT_S)
        else:
            await self._find_missing()
        await self._flush()

    async def _keep_alive(self) -> int:
        """Refresh once; the seconds left to live, 0 when the lease is gone."""
        lease_id = self.id

        async def attempt(channel: grpc.aio.Channel, timeout: float) -> Any:
            call = rpc.LeaseStub(channel).LeaseKeepAlive(timeout=timeout)
            try:
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                reply = await call.read()
                if reply is grpc.aio.EOF:
                    raise TimeoutError
                return reply
            finally:
                call.cancel()

        reply, _ = await self._channel.call(attempt, timeout_s=max(1.5, self.ttl_s * 0.4))
        return int(reply.TTL)

    async def _find_missing(self) -> None:
        """Note keys that somebody else removed; a key that another lease took over stays with it."""
        if not self._wanted:
            return
        request = rpc.LeaseTimeToLiveRequest(ID=self.id, keys=True)
        reply, _ = await self._channel.call(
            lambda channel, timeout: rpc.LeaseStub(channel).LeaseTimeToLive(request, timeout=timeout)
        )
        held = {key.decode() for key in reply.keys}
        for key in [key for key in self._wanted if key not in held and key not in self._dirty]:
            found = await self._channel.kv("Range", rpc.RangeRequest(key=key.encode(), keys_only=True))
            if found.kvs:
                log.warning("etcd.lease.key_taken key=%s by=%x", key, found.kvs[0].lease)
            elif key in self._wanted:
                self._dirty[key] = None
