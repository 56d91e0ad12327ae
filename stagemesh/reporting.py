"""Pushes load reports of this process to the registry that leads, for as long as it runs.

The registry being away, or etcd, disturbs nobody: reports of that time are not made up for, since the next one says what
counts by then.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

import grpc

from stagemesh import records
from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import create_channel
from stagemesh.v1.registry_pb2 import LoadReport, ReportPace, ServiceRecord
from stagemesh.v1.registry_pb2_grpc import RegistryServiceStub

log = logging.getLogger(__name__)

Make = Callable[[float], LoadReport]
"""Makes the report on the seconds since the one before."""

_FIRST_PERIOD_S = 1.0
_LEAST_PERIOD_S, _MOST_PERIOD_S = 0.1, 60.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 10.0
# A report that cannot be handed over, or a registry that does not answer the first one.
_HAND_OVER_S = 5.0


class Reporter:
    """One stream at a time, to whoever leads. `async with` starts and stops it.

    Args:
        etcd: started; says who leads, and where that is.
        make: called on the event loop once a period, which the registry chooses.
        reporter: id of this node or router.
    """

    def __init__(self, etcd: Etcd, reporter: str, make: Make) -> None:
        self._etcd = etcd
        self._reporter = reporter
        self._make = make
        self._period_s = _FIRST_PERIOD_S
        self._made_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        # Reports that a registry took.
        self.sent = 0

    def __repr__(self) -> str:
        return f"<Reporter {self._reporter} sent={self.sent} period={self._period_s:g}s>"

    async def __aenter__(self) -> "Reporter":
        self._task = asyncio.create_task(self._run(), name="load-reports")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        retry_s, told = _FIRST_RETRY_S, ""
        while True:
            before = self.sent
            try:
                await self._report_to(await leading_registry(self._etcd))
                why = "the registry ended the stream"
            except (StagemeshError, ValueError, TimeoutError) as error:
                why = str(error) or "the registry does not answer"
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
            if self.sent > before:
                retry_s, told = _FIRST_RETRY_S, ""
            if why != told:
                log.info("reports.interrupted: %s", why)
                told = why
            await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(_LAST_RETRY_S, retry_s * 2)

    async def _report_to(self, address: str) -> None:
        async with create_channel(address) as channel:
            stream = RegistryServiceStub(channel).Report()
            paces: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(_HAND_OVER_S):
                    await stream.write(LoadReport(reporter=self._reporter))
                    self._follow_pace(await stream.read())
                paces = asyncio.create_task(self._read_paces(stream), name="report-pace")
                while not paces.done():
                    await asyncio.wait({paces}, timeout=self._period_s * random.uniform(0.9, 1.0))
                    if not paces.done():
                        async with asyncio.timeout(_HAND_OVER_S):
                            await stream.write(self._report())
                        self.sent += 1
                paces.result()
            finally:
                stream.cancel()
                if paces is not None:
                    paces.cancel()
                    await asyncio.gather(paces, return_exceptions=True)

    def _report(self) -> LoadReport:
        now = time.monotonic()
        covers_s, self._made_at = now - self._made_at, now
        return self._make(covers_s)

    async def _read_paces(self, stream: "grpc.aio.StreamStreamCall[LoadReport, ReportPace]") -> None:
        while (pace := await stream.read()) is not grpc.aio.EOF:
            self._follow_pace(pace)

    def _follow_pace(self, pace: ReportPace) -> None:
        if pace is grpc.aio.EOF:
            raise Unavailable("the registry ended the stream")
        if pace.period_ms:
            self._period_s = min(max(pace.period_ms / 1000, _LEAST_PERIOD_S), _MOST_PERIOD_S)


async def leading_registry(etcd: Etcd) -> str:
    """Address of the registry that leads; raises `Unavailable` when none does, or etcd does not answer."""
    leader = await etcd.get(records.LEADER)
    if leader is None:
        raise Unavailable("no registry leads")
    found = await etcd.get(records.service_key("registry", leader.value.decode(errors="replace")))
    if found is None:
        raise Unavailable("the registry that leads has not said where it is")
    return records.from_json(found.value, ServiceRecord).address
