"""The only door to etcd: several endpoints, TLS, keepalive, supervised leases, watches that repair themselves.

`aetcd` supplies the generated etcd v3 stubs. Its client has one host, no TLS, a one-shot lease refresh, and a
watch that can end silently, so this package drives the stubs on its own channels: one per endpoint, turning to
the next one when an endpoint does not answer.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aetcd import rpc

from stagemesh.errors import FailedPrecondition, NotFound, StagemeshError, Unavailable
from stagemesh.etcd_channel import EtcdChannel
from stagemesh.etcd_lease import Lease
from stagemesh.etcd_txn import Delete, Guard, Put, Write, holds, request_of
from stagemesh.etcd_watch import Change, Snapshot, prefix_end, watch_prefix

__all__ = ["Change", "Delete", "Etcd", "Guard", "KeyValue", "Lease", "Put", "Snapshot", "Write"]

log = logging.getLogger(__name__)

_PAGE = 500
_HEARTBEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; revisions count the changes of the whole store."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int


def _key_value(item: Any) -> KeyValue:
    return KeyValue(item.key.decode(), item.value, item.mod_revision, item.create_revision)


class Etcd:
    """A client of one etcd cluster.

    `endpoints` is `host:port,host:port`. Every operation raises `errors.Unavailable` when no endpoint answers
    within `timeout_s`.
    """

    def __init__(
        self,
        endpoints: str,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self._channel = EtcdChannel(endpoints, ca=ca, cert=cert, key=key, timeout_s=timeout_s)
        self._leases: set[Lease] = set()
        self._heartbeat: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Etcd {self._channel!r} leases={len(self._leases)}>"

    async def start(self) -> None:
        """Connect; raise `errors.Unavailable` with one clear line when no endpoint answers."""
        self._channel.open()
        try:
            await self._ping(self._channel.timeout_s)
        except BaseException:
            await self._channel.close()
            raise
        self._heartbeat = asyncio.create_task(self._beat(), name="etcd-heartbeat")

    async def close(self) -> None:
        """Revoke the leases that are still held, end all tasks and close the channels."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
            self._heartbeat = None
        await asyncio.gather(*(lease.revoke() for lease in list(self._leases)), return_exceptions=True)
        await self._channel.close()

    @property
    def connected(self) -> bool:
        """Whether the last operation or heartbeat reached etcd."""
        return self._channel.connected

    async def get(self, key: str) -> KeyValue | None:
        """The key, or None."""
        reply = await self._channel.kv("Range", rpc.RangeRequest(key=key.encode()))
        return _key_value(reply.kvs[0]) if reply.kvs else None

    async def get_prefix(self, prefix: str) -> tuple[list[KeyValue], int]:
        """All keys under `prefix` at one revision of the store, ordered by key, and that revision."""
        start, end = prefix.encode() or b"\0", prefix_end(prefix)
        items: list[KeyValue] = []
        revision = 0
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            reply = await self._channel.kv("Range", request)
            revision = revision or reply.header.revision
            items.extend(_key_value(item) for item in reply.kvs)
            if not reply.more:
                return items, revision
            start = reply.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        """Write the key; with `lease` it is the same as `lease.put`. Returns the store revision (0 if deferred)."""
        if lease is not None:
            return await lease.put_now(key, value)
        reply = await self._channel.kv("Put", rpc.PutRequest(key=key.encode(), value=value))
        return int(reply.header.revision)

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it was there."""
        reply = await self._channel.kv("DeleteRange", rpc.DeleteRangeRequest(key=key.encode()))
        return bool(reply.deleted)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every key under `prefix`; how many there were."""
        request = rpc.DeleteRangeRequest(key=prefix.encode() or b"\0", range_end=prefix_end(prefix))
        return int((await self._channel.kv("DeleteRange", request)).deleted)

    async def compare_and_put(
        self, key: str, value: bytes, *, expected_mod_revision: int, lease: Lease | None = None
    ) -> bool:
        """Write only if the key's last change is `expected_mod_revision` (0: the key must not exist).

        Under a lease the key goes when the lease goes; unlike `Lease.put` it is *not* written again when the
        lease is lost, since by then the claim may be another's. Raises `errors.FailedPrecondition` when the
        lease is gone.
        """
        name = key.encode()
        lease_id = lease.id if lease is not None else 0
        put = rpc.PutRequest(key=name, value=value, lease=lease_id)
        compare = rpc.Compare(
            key=name,
            target=rpc.Compare.MOD,
            result=rpc.Compare.EQUAL,
            mod_revision=expected_mod_revision,
        )
        request = rpc.TxnRequest(
            compare=[compare],
            success=[rpc.RequestOp(request_put=put)],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=name))],
        )
        try:
            reply, attempts = await self._channel.kv_counted("Txn", request)
        except NotFound as error:
            raise FailedPrecondition("the lease of this claim is gone") from error
        if reply.succeeded:
            return True
        # A first attempt whose answer was lost may have been applied: then the key is ours as asked.
        current = reply.responses[0].response_range.kvs
        return attempts > 1 and any(item.value == value and item.lease == lease_id for item in current)

    async def transact(self, guards: Sequence[Guard], writes: Sequence[Write]) -> int:
        """Do all writes if every guard holds at that moment, else none; the store's revision then, or 0.

        When the answer to a first attempt was lost and the keys are found as asked, it counts as done.
        """
        reply, attempts = await self._channel.kv_counted("Txn", request_of(guards, writes))
        if reply.succeeded or (attempts > 1 and holds(writes, reply)):
            return int(reply.header.revision)
        return 0

    async def lease(self, ttl_s: int) -> Lease:
        """Grant a supervised lease; it is refreshed until `Lease.revoke` or `close`."""
        lease = Lease(self._channel, ttl_s, on_end=self._leases.discard)
        await lease.start()
        self._leases.add(lease)
        return lease

    async def grant(self, ttl_s: int) -> int:
        """A lease that nobody refreshes: its keys go after `ttl_s` seconds, whatever becomes of this process."""
        request = rpc.LeaseGrantRequest(TTL=ttl_s)
        reply, _ = await self._channel.call(
            lambda channel, timeout: rpc.LeaseStub(channel).LeaseGrant(request, timeout=timeout)
        )
        return int(reply.ID)

    async def put_under(self, key: str, value: bytes, lease_id: int) -> None:
        """Write the key under what `grant` gave; raises `errors.NotFound` when that is gone."""
        await self._channel.kv("Put", rpc.PutRequest(key=key.encode(), value=value, lease=lease_id))

    async def watch(self, prefix: str) -> AsyncGenerator[Snapshot | Change, None]:
        """First a `Snapshot` of `prefix`, then each `Change`; after a break a new `Snapshot`. Never ends.

        While etcd is down nothing is yielded. A store that came back empty gives an empty `Snapshot`; what to
        make of it is the consumer's decision.
        """

        async def read() -> tuple[dict[str, bytes], int]:
            items, revision = await self.get_prefix(prefix)
            return {item.key: item.value for item in items}, revision

        async with aclosing(watch_prefix(self._channel, prefix, read)) as events:
            async for event in events:
                yield event

    async def _ping(self, timeout_s: float) -> None:
        await self._channel.kv("Range", rpc.RangeRequest(key=b"\0", count_only=True, limit=1), timeout_s)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            if self._channel.idle_s < _HEARTBEAT_S:
                continue
            try:
                await self._ping(2.0)
            except Unavailable:
                pass
            except StagemeshError as error:
                log.warning("etcd.heartbeat_failed: %s", error)
