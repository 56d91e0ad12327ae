"""Keeps what the preloader has learned in etcd: read when this registry begins to lead, written every few minutes while it does."""

import asyncio
import logging
import time

from stagemesh import records
from stagemesh.errors import StagemeshError
from stagemesh.etcd import Etcd, Put

from ..leadership import Fenced, Leadership
from . import Preloader

log = logging.getLogger(__name__)

WRITE_S = 120.0
_TICK_S = 1.0
_AT_ONCE = 64


class PreloadKeeper:
    """One task. A leader that dies takes at most what was learned in the last two minutes with it."""

    def __init__(self, etcd: Etcd, leadership: Leadership, preloader: Preloader) -> None:
        self._etcd = etcd
        self._leadership = leadership
        self._preloader = preloader
        self._term = 0
        self._written_at = float("-inf")

    def __repr__(self) -> str:
        return f"<PreloadKeeper term={self._term} {self._preloader!r}>"

    async def run(self) -> None:
        """Read and write; does not return. Absences of etcd are waited out."""
        while True:
            try:
                await self.step(time.monotonic())
            except Fenced as error:
                log.info("preload.fenced: %s", error)
            except StagemeshError as error:
                log.warning("preload.deferred: %s", error)
            await asyncio.sleep(_TICK_S)

    async def step(self, now: float) -> None:
        """Take over when a term begins; write when it is time. `now` in monotonic seconds."""
        if not self._leadership.leads:
            return
        term = self._leadership.term
        if term != self._term:
            await self._take_over(now)
            self._term, self._written_at = term, now
        if now - self._written_at >= WRITE_S:
            self._written_at = now
            await self.write()

    async def write(self) -> None:
        """Write what has changed."""
        writes = [Put(records.preload_key(name), value) for name, value in self._preloader.dump().items()]
        for first in range(0, len(writes), _AT_ONCE):
            await self._leadership.commit(writes[first : first + _AT_ONCE], term=self._term)

    async def _take_over(self, now: float) -> None:
        found, _ = await self._etcd.get_prefix(records.PRELOAD)
        items = {each.key.removeprefix(records.PRELOAD): each.value for each in found}
        unreadable = self._preloader.load(items, now)
        if unreadable:
            log.warning("preload.unreadable: %d of %d records", unreadable, len(items))
