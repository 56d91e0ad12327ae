"""Follows what replicas hold of prompts: a stream to each replica of the models that are balanced by it.

Whoever is read from tells everything first and then what changes, so that all routers know the same, also of prompts that
others sent. A stream that breaks, or misses a report, is opened anew; until then what was known stays, since that costs
time only. Nothing waits for it: a router that knows nothing balances like `p2c_ewma`.
"""

import asyncio
import logging
import math
import time

import grpc.aio

from stagemesh.v1.registry_pb2 import REPLICA_STATE_READY
from stagemesh.v1.stage_pb2 import WatchPrefixesRequest

from .channels import Channels
from .loads import Loads
from .membership import Membership
from .prefixes import Prefixes
from .routing import Routing
from .telemetry import Telemetry

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
LOOK_S = 0.2
"""When much changes at once, the whole of it is looked at that often; `update` is called twice a second anyway."""
MOST_STREAMS = 4096
"""Replicas that are followed; those beyond are balanced as if they held nothing."""


class PrefixWatch:
    """Owns a task for each replica that is followed. `update` says which ones, `close` ends them."""

    def __init__(
        self,
        membership: Membership,
        routing: Routing,
        loads: Loads,
        channels: Channels,
        telemetry: Telemetry,
    ) -> None:
        self._membership = membership
        self._routing = routing
        self._loads = loads
        self._prefixes: Prefixes = routing.prefixes
        self._channels = channels
        self._telemetry = telemetry
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._seen: tuple[int, int] = (-1, -1)
        self._looked = -math.inf
        telemetry.prefix_blocks.set_function(lambda: len(self._prefixes))

    def __repr__(self) -> str:
        return f"PrefixWatch(streams={len(self._following)}, {self._prefixes!r})"

    def update(self) -> None:
        """Follow the ready replicas that there are now, and forget the others."""
        seen = self._membership.version, self._routing.asked_by_prefix
        now = time.monotonic()
        if seen == self._seen or now < self._looked + LOOK_S:
            return
        self._seen, self._looked = seen, now
        models = {
            spec.name for spec in self._membership.models.values() if self._routing.goes_by_prefix(spec)
        }
        # Of every revision: two may serve side by side.
        wanted = {
            (each.replica_id, each.address)
            for each in self._membership.replicas.values()
            if each.model in models and each.state == REPLICA_STATE_READY
        }
        for key in [key for key in self._following if key not in wanted]:
            self._following.pop(key).cancel()
            self._prefixes.forget(key[0])
        for key in wanted:
            if key in self._following:
                continue
            if len(self._following) >= MOST_STREAMS:
                log.warning("prefixes.too_many: %d of %d replicas are followed", MOST_STREAMS, len(wanted))
                break
            self._following[key] = asyncio.create_task(self._follow(*key), name=f"prefixes-{key[0]}")

    async def close(self) -> None:
        """End every stream."""
        tasks = list(self._following.values())
        self._following.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, replica_id: str, address: str) -> None:
        """Stay with one replica until cancelled, or until it turns out to know nothing of this."""
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                why = await self._listen(replica_id, address)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    log.info("prefixes.not_told replica=%s: it is of an older version", replica_id)
                    return
                why = error.code().name
            except grpc.aio.UsageError:
                why = "its channel was closed"
            log.info("prefixes.lost replica=%s: %s", replica_id, why)
            pause = FIRST_PAUSE_S if time.monotonic() > began + LONGEST_PAUSE_S else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _listen(self, replica_id: str, address: str) -> str:
        """Take reports of one stream; why it ended."""
        self._prefixes.begin(replica_id)
        request = WatchPrefixesRequest(replica_id=replica_id)
        # It lives as long as the replica does; gRPC's pings find out when the other end is gone.
        call = self._channels.stage(address).WatchPrefixes(request)
        reports = self._telemetry.prefix_reports
        try:
            async for report in call:
                if not self._prefixes.take(replica_id, report):
                    reports.labels("missed").inc()
                    return "a report was missed"
                reports.labels("full" if report.full else "changes").inc()
                if report.load.replica_id == replica_id:
                    self._loads.report([report.load], time.monotonic())
            return "it ended the stream"
        finally:
            call.cancel()
