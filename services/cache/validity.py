"""What must no longer be answered: invalidations, on every cache of the mesh, and revisions that are deployed no more.

An invalidation is a record in etcd, kept for a day. Caches that are up hear of it at once; one that was down finds it
when it starts, before it answers anybody. A record has an id, and is carried out once wherever it is heard of.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

from stagemesh import records
from stagemesh.entry_store import EntryStore
from stagemesh.errors import InvalidArgument, StagemeshError
from stagemesh.etcd import Change, Etcd, Snapshot
from stagemesh.invalidation import Lately, Selector, selector_of
from stagemesh.v1.cache_pb2 import CacheInvalidateRequest, CacheInvalidation
from stagemesh.v1.registry_pb2 import ModelSpec

from .behind import Behind

log = logging.getLogger(__name__)
KEEP_S = 86400.0
"""How long a record stays in etcd. A cache that was out of touch for as long forgets all that it holds."""
ANNOUNCE_S = 1.0
_PRUNE_EVERY_S = 600.0
_SLICE = 1000
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class Follower(Protocol):
    """Hears of all that is no longer valid, after the entries are gone."""

    async def dropped(self, selector: Selector) -> None:
        """What the selector fits was invalidated."""

    async def deployed(self, spec: ModelSpec | None, name: str) -> None:
        """A model is deployed so; None: no more."""


class Validity:
    """Drops what was invalidated from the memory and from behind. Used on the event loop only."""

    def __init__(self, store: EntryStore, behind: Behind) -> None:
        self._store = store
        self._behind = behind
        self._lately = Lately(keep_s=3600.0, at_most=4096)
        self._known: dict[str, asyncio.Task[int]] = {}
        self._revisions: dict[str, str] = {}
        self.followers: list[Follower] = []

    def __repr__(self) -> str:
        return f"Validity({len(self._known)} invalidations known)"

    def outdated(self, tenant: str, tags: Collection[str], begun_s_ago: float) -> bool:
        """Whether an answer that was begun so long ago has been invalidated since."""
        return self._lately.covers(tenant, tags, time.monotonic() - begun_s_ago)

    async def carry_out(self, request: CacheInvalidateRequest) -> tuple[str, int]:
        """Drop what is meant; its id, and how many entries left the memory for it. It is done once for each id."""
        selector = selector_of(request)
        invalidation = request.id or uuid.uuid4().hex
        if not _ID.fullmatch(invalidation):
            raise InvalidArgument("id: must be 1 to 64 letters, digits or dashes", field="id")
        known = self._known.get(invalidation)
        if known is not None:
            return invalidation, await asyncio.shield(known)
        if self._behind.carried_out(invalidation):
            return invalidation, 0
        # A task of its own: that the caller goes away does not leave it half done.
        work = asyncio.create_task(self._carry_out(selector, invalidation), name="cache-invalidation")
        self._known[invalidation] = work
        return invalidation, await asyncio.shield(work)

    async def _carry_out(self, selector: Selector, invalidation: str) -> int:
        try:
            self._lately.add(selector, time.monotonic())
            dropped = await self._drop(self._store.select(selector))
            await self._behind.invalidate(selector, invalidation)
            for follower in self.followers:
                await follower.dropped(selector)
        except BaseException:
            self._known.pop(invalidation, None)
            raise
        log.info("cache.invalidated id=%s entries=%d", invalidation, dropped)
        return dropped

    async def deployed(self, spec: ModelSpec) -> None:
        """A model is deployed in this revision: answers of any other are dropped."""
        for follower in self.followers:
            await follower.deployed(spec, spec.name)
        if self._revisions.get(spec.name) == spec.revision:
            return  # it was scaled, or is only told again
        self._revisions[spec.name] = spec.revision
        model, revision = f"model:{spec.name}", f"revision:{spec.revision}"
        dropped = await self._drop(self._store.stale(model, revision))
        await self._behind.drop_stale(model, revision)
        if dropped:
            log.info("cache.purged model=%s entries=%d", spec.name, dropped)

    async def undeployed(self, name: str) -> None:
        """A model is gone, and its answers with it."""
        self._revisions.pop(name, None)
        model = f"model:{name}"
        await self._drop(self._store.select(Selector(tags=frozenset({model}))))
        await self._behind.drop_stale(model, "")
        for follower in self.followers:
            await follower.deployed(None, name)

    async def forget_all(self) -> None:
        """Drop everything: it cannot be known what of it was invalidated."""
        await self._drop(self._store.select(Selector()))
        for follower in self.followers:
            await follower.dropped(Selector())

    def forget(self, invalidation: str) -> None:
        """A record was removed: nobody will speak of it again."""
        self._known.pop(invalidation, None)
        self._behind.forget(invalidation)

    async def _drop(self, keys: list[tuple[str, bytes]]) -> int:
        """In slices, so that lookups go on meanwhile."""
        dropped = 0
        for start in range(0, len(keys), _SLICE):
            dropped += self._store.drop(keys[start : start + _SLICE])
            await asyncio.sleep(0)
        return dropped


class ValidityWatch:
    """Follows etcd for a `Validity`; `async with` owns its tasks."""

    def __init__(self, etcd: Etcd, validity: Validity) -> None:
        self._etcd = etcd
        self._validity = validity
        self._listed = [asyncio.Event(), asyncio.Event()]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "ValidityWatch":
        parts: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self._follow(records.INVALIDATIONS, self._invalidation, self._listed[0]),
            lambda: self._follow(records.MODELS, self._model, self._listed[1]),
            self._prune,
        )
        self._tasks = [asyncio.create_task(_kept_up(part)) for part in parts]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listed(self) -> None:
        """Return once all that etcd held at the start has been carried out."""
        for event in self._listed:
            await event.wait()

    async def announce(self, request: CacheInvalidateRequest, invalidation: str) -> bool:
        """Tell the other caches, those that are down now too; whether etcd took it."""
        record = CacheInvalidation(what=request, unix_ms=time.time_ns() // 10**6)
        record.what.id = invalidation
        try:
            async with asyncio.timeout(ANNOUNCE_S):
                await self._etcd.put(records.invalidation_key(invalidation), records.to_json(record))
        except (TimeoutError, StagemeshError) as error:
            log.warning("cache.not_announced id=%s: %s", invalidation, error)
            return False
        return True

    async def _follow(
        self,
        prefix: str,
        take: Callable[[str, bytes | None], Coroutine[Any, Any, None]],
        listed: asyncio.Event,
    ) -> None:
        events = self._etcd.watch(prefix)
        async with aclosing(events):  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Snapshot):
                    for key, value in event.items.items():
                        await take(key.removeprefix(prefix), value)
                    listed.set()
                elif isinstance(event, Change):
                    await take(event.key.removeprefix(prefix), event.value)

    async def _invalidation(self, name: str, value: bytes | None) -> None:
        if value is None:
            self._validity.forget(name)
            return
        try:
            record = records.from_json(value, CacheInvalidation)
            record.what.id = name
            await self._validity.carry_out(record.what)
        except (ValueError, StagemeshError) as error:
            log.error("cache.invalidation_unreadable id=%s: %s; everything is dropped", name, error)
            await self._validity.carry_out(CacheInvalidateRequest(id=name if _ID.fullmatch(name) else ""))

    async def _model(self, name: str, value: bytes | None) -> None:
        # A listing that lacks a model says nothing: etcd may have come back empty. A deletion does.
        if value is None:
            await self._validity.undeployed(name)
            return
        try:
            spec = records.from_json(value, ModelSpec)
        except ValueError as error:
            log.error("cache.model_unreadable name=%s: %s", name, error)
            return
        await self._validity.deployed(spec)

    async def _prune(self) -> None:
        """Remove records that are a day old; forget everything when out of touch for as long."""
        heard_at = time.monotonic()
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            if not self._etcd.connected:
                if time.monotonic() - heard_at > KEEP_S - 2 * _PRUNE_EVERY_S:
                    await self._validity.forget_all()
                continue
            heard_at = time.monotonic()
            oldest_ms = time.time_ns() // 10**6 - int(KEEP_S * 1000)
            items, _ = await self._etcd.get_prefix(records.INVALIDATIONS)
            for item in items:
                if _unix_ms(item.value) < oldest_ms:
                    await self._etcd.delete(item.key)


def _unix_ms(value: bytes) -> int:
    try:
        return records.from_json(value, CacheInvalidation).unix_ms
    except ValueError:
        return 0


async def _kept_up(part: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start it again when it fails."""
    while True:
        try:
            await part()
        except StagemeshError as error:
            log.warning("cache.watch_failed: %s", error)
        except Exception:
            log.exception("cache.watch_failed")
        await asyncio.sleep(1.0)
