"""The layer's one thread: searches and writes never stand in the way of the event loop, nor of an exact hit."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stagemesh.errors import ResourceExhausted
from stagemesh.invalidation import Selector
from stagemesh.revisions import specs_of
from stagemesh.v1.registry_pb2 import ModelSpec

from .file import SemanticFile
from .layer import Changes, SemanticLayer
from .measures import SemanticMeasures

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_WAITING = 256
"""Calls that wait for the thread; more are refused, and whoever asked computes."""
_FLUSH_S = 1.0


class SemanticWorker:
    """`async with` owns the thread and the writing. Every method is for the event loop."""

    def __init__(self, parts: tuple[SemanticLayer, SemanticFile | None]) -> None:
        self.measures = SemanticMeasures()
        self._layer, self._file = parts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="semantic")
        self._waiting = 0
        self._flushing: asyncio.Task[None] | None = None
        self._revisions: dict[str, set[str]] = {}

    def __repr__(self) -> str:
        return f"SemanticWorker({self._waiting} waiting)"

    async def __aenter__(self) -> "SemanticWorker":
        self._flushing = asyncio.create_task(self._flush_often(), name="semantic-flush")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._always(self._flush)
        if self._file is not None:
            await self._always(lambda _: self._file.close() if self._file is not None else None)
        await asyncio.to_thread(self._thread.shutdown)

    async def call(self, work: Callable[[SemanticLayer], T]) -> T:
        """Run it on the layer, in its thread. Raises `ResourceExhausted` when too many wait."""
        if self._waiting >= MAX_WAITING:
            raise ResourceExhausted("too many semantic lookups wait", retry_after_s=0.1)
        started = time.perf_counter()
        try:
            return await self._always(work)
        finally:
            self.measures.seconds.observe(time.perf_counter() - started)

    async def _always(self, work: Callable[[SemanticLayer], T]) -> T:
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._layer)
        finally:
            self._waiting -= 1

    # ---- what is no longer valid ----

    async def dropped(self, selector: Selector) -> None:
        """What the selector fits was invalidated."""
        await self._always(lambda layer: layer.invalidate(selector))

    async def deployed(self, spec: ModelSpec | None, name: str) -> None:
        """A model is deployed so; None: no more. During a rollout it is deployed in two revisions."""
        revisions = {each.revision for each in specs_of(spec)} if spec is not None else set()
        if spec is not None and self._revisions.get(name) == revisions:
            return
        self._revisions[name] = revisions
        if not revisions:
            del self._revisions[name]
        await self._always(lambda layer: layer.deployed(name, revisions))

    # ---- what lies behind ----

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self._always(self._flush)
            except Exception:
                log.exception("cache.semantic_flush_failed")

    def _flush(self, layer: SemanticLayer) -> None:
        layer.rows.expire()
        changes = layer.take_changes()
        if changes and self._file is not None:
            self._write(changes)
        if changes:
            self.measures.show(layer.report())

    def _write(self, changes: Changes) -> None:
        assert self._file is not None
        try:
            self._file.write(changes)
        except sqlite3.Error as error:
            count = len(changes.rows) + len(changes.faults) + len(changes.states) + len(changes.usage)
            self.measures.dropped_writes.inc(count)
            log.warning("cache.semantic_not_written: %s; %d changes are lost at a restart", error, count)
