"""What the registry did and why: records in etcd that go by themselves after an hour."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from stagemesh import metrics, records
from stagemesh.errors import StagemeshError
from stagemesh.etcd import Etcd
from stagemesh.v1.registry_pb2 import EventRecord

log = logging.getLogger(__name__)

MOST = 1000
"""Events that wait to be written; while etcd is away, later ones are dropped and counted."""
KEPT_S = 3600
_LEASE_S = 900
_RETRY_S = 1.0


class Events:
    """`note` takes an event and never blocks; a task of its own writes. `async with` starts and stops it.

    Events share leases that nobody refreshes, a new one each quarter of an hour, so each is there for an hour, at most a
    quarter longer, and etcd forgets it by itself. Each is logged, too.
    """

    def __init__(self, etcd: Etcd, registry_id: str = "", clock: Callable[[], float] = time.time) -> None:
        self.dropped = 0
        self._etcd = etcd
        self._registry_id = registry_id
        self._clock = clock
        self._waiting: asyncio.Queue[EventRecord] = asyncio.Queue(MOST)
        self._task: asyncio.Task[None] | None = None
        self._lease = 0
        self._lease_until = float("-inf")
        self._noted = metrics.counter(
            "stagemesh_registry_events_total", "Decisions of this registry, by kind.", ("kind",)
        )
        self._dropped = metrics.counter(
            "stagemesh_registry_events_dropped_total",
            "Events that were not written, since etcd was away for long.",
        )

    def __repr__(self) -> str:
        return f"<Events waiting={self._waiting.qsize()} dropped={self.dropped}>"

    def note(self, kind: str, model: str, reason: str, **numbers: float) -> None:
        """Something was decided: `kind` is a stable dotted name, `reason` one line with the numbers in words."""
        log.info("registry.event %s model=%s: %s", kind, model or "-", reason)
        self._noted.labels(kind).inc()
        record = EventRecord(
            kind=kind,
            model=model,
            reason=reason,
            numbers=numbers,
            unix_ms=int(self._clock() * 1000),
            registry=self._registry_id,
        )
        try:
            self._waiting.put_nowait(record)
        except asyncio.QueueFull:
            self.dropped += 1
            self._dropped.inc()

    async def __aenter__(self) -> "Events":
        self._task = asyncio.create_task(self._write(), name="events")
        return self

    async def __aexit__(self, *_: object) -> None:
        """What waits is written if etcd answers now; else it is dropped and counted."""
        if self._task is not None:
            try:
                async with asyncio.timeout(_RETRY_S):
                    await self._waiting.join()
            except TimeoutError:
                left = self._waiting.qsize()
                self.dropped += left
                self._dropped.inc(left)
                log.warning("registry.events_dropped: %d, etcd does not answer", left)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            record = await self._waiting.get()
            key = records.event_key(record.unix_ms, secrets.token_hex(4))
            value = records.to_json(record)
            while not await self._put(key, value):  # noqa: ASYNC110 (it does not wait for something to happen here)
                await asyncio.sleep(_RETRY_S)
            self._waiting.task_done()

    async def _put(self, key: str, value: bytes) -> bool:
        try:
            now = self._clock()
            if now >= self._lease_until:
                self._lease = await self._etcd.grant(KEPT_S + _LEASE_S)
                self._lease_until = now + _LEASE_S
            await self._etcd.put_under(key, value, self._lease)
        except StagemeshError as error:
            # The lease may be gone with the store: the next attempt takes a new one.
            self._lease_until = float("-inf")
            log.warning("registry.event_deferred: %s", error)
            return False
        return True
