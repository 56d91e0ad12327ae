"""Feeds `membership` from the watch on etcd, tells of changes, and tidies up behind it."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from stagemesh import records
from stagemesh.etcd import Change, Etcd, Snapshot

from .cache.near import NearCache
from .channels import Channels
from .loads import Loads
from .membership import Membership
from .warm import Warmer

log = logging.getLogger(__name__)
TICK_S = 0.5


class MembershipWatch:
    """Two tasks: one follows the watch, one lets the grace periods run out. `async with` owns both."""

    def __init__(
        self,
        etcd: Etcd,
        membership: Membership,
        loads: Loads,
        channels: Channels,
        warmer: Warmer,
        changed: Callable[[], None] = lambda: None,
        near: NearCache | None = None,
    ) -> None:
        self._etcd = etcd
        self._membership = membership
        self._loads = loads
        self._channels = channels
        self._warmer = warmer
        self._changed = changed
        self._near = near
        self._listed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "MembershipWatch":
        self._warmer.start()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tick())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._warmer.close()

    async def listed(self) -> None:
        """Return once the first listing has been taken; raises what ended the watch, if it ended."""
        waiter = asyncio.create_task(self._listed.wait())
        try:
            await asyncio.wait([waiter, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
        finally:
            waiter.cancel()

    async def _follow(self) -> None:
        events = self._etcd.watch(records.ROOT)
        async with aclosing(events):  # type: ignore[type-var]
            async for event in events:
                now = time.monotonic()
                if isinstance(event, Snapshot):
                    self._membership.snapshot(event.items, now)
                    if self._near is not None:
                        self._near.listed(event.items)
                    self._listed.set()
                    log.info("membership.listed %r", self._membership)
                elif isinstance(event, Change) and not event.key.startswith(records.EVENTS):
                    if self._near is not None:
                        self._near.change(event.key, event.value)
                    self._membership.change(event.key, event.value, now)
                self._changed()

    async def _tick(self) -> None:
        connected, version = True, -1
        while True:
            await asyncio.sleep(TICK_S)
            if self._tasks[0].done():
                log.error("membership.watch_ended: starting it anew", exc_info=self._tasks[0].exception())
                self._tasks[0] = asyncio.create_task(self._follow())
            if self._etcd.connected and not connected:
                self._membership.reconnected(time.monotonic())
                log.info("membership.reconnected")
            elif connected and not self._etcd.connected:
                log.warning("membership.disconnected: going on with %r", self._membership)
            connected = self._etcd.connected
            self._membership.expire(time.monotonic())
            if self._near is not None:
                self._near.expire()
            self._changed()
            if version != self._membership.version:
                version = self._membership.version
                self._warmer.update(
                    [*self._membership.models.values(), *self._membership.candidates.values()]
                )
                self._channels.sweep(self._membership.addresses())
                # A lookup has milliseconds, too few to connect in when many requests come first.
                self._channels.connect(record.address for record in self._membership.services_of("cache"))
                self._loads.forget({each.replica_id for each in self._membership.replicas.values()})
