"""Takes load reports from nodes and routers while this registry leads, and sets their pace."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from stagemesh import metrics
from stagemesh.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from stagemesh.v1.registry_pb2 import LoadReport, ReportPace

from .leadership import Leadership
from .scaling.reports import period_s

log = logging.getLogger(__name__)

MOST_REPORTERS = 20_000
MOST_IN_ONE = 10_000
"""Replicas, models or revisions that one report may be about."""
# Whoever says nothing for so many periods is taken for gone; at least for so long.
_SILENT_PERIODS, _SILENT_S = 5.0, 15.0

Take = Callable[[LoadReport], None]


class ReportDoor:
    """Every report goes to each of `takers`, in order.

    Attributes:
        period_s: how often each reporter is to report: once a second, less often where they are many.
    """

    def __init__(self, leadership: Leadership, takers: list[Take]) -> None:
        self._leadership = leadership
        self._takers = takers
        self._open = 0
        self._gauge = metrics.gauge(
            "stagemesh_registry_reporters", "Nodes and routers that report their load to this registry."
        )
        self._reports = metrics.counter("stagemesh_registry_reports_total", "Load reports that were taken.")

    def __repr__(self) -> str:
        return f"<ReportDoor reporters={self._open} period={self.period_s:g}s>"

    @property
    def period_s(self) -> float:
        """Seconds between reports."""
        return period_s(self._open)

    async def stream(self, reports: AsyncIterator[LoadReport]) -> AsyncIterator[ReportPace]:
        """One reporter's stream, until it ends it, falls silent, or another registry leads.

        Raises:
            FailedPrecondition: another registry leads.
            ResourceExhausted: there are too many reporters.
            InvalidArgument: a report that names nobody, or is about too much.
        """
        self._check_leads()
        if self._open >= MOST_REPORTERS:
            raise ResourceExhausted(f"{self._open} report already", retry_after_s=10.0)
        self._open += 1
        self._gauge.set(self._open)
        try:
            told = 0.0
            while (report := await self._next(reports)) is not None:
                self._check_leads()
                check_report(report)
                self._reports.inc()
                for take in self._takers:
                    take(report)
                # Half as much again is worth a message.
                if not told / 1.5 < self.period_s < told * 1.5:
                    told = self.period_s
                    yield ReportPace(period_ms=round(told * 1000))
        finally:
            self._open -= 1
            self._gauge.set(self._open)

    async def _next(self, reports: AsyncIterator[LoadReport]) -> LoadReport | None:
        try:
            async with asyncio.timeout(max(_SILENT_S, _SILENT_PERIODS * self.period_s)):
                return await anext(reports, None)
        except TimeoutError:
            return None

    def _check_leads(self) -> None:
        if not self._leadership.leads:
            raise FailedPrecondition("another registry leads, or none does yet")


def check_report(report: LoadReport) -> None:
    """Raise `InvalidArgument` naming the field unless the report names its sender and is of a sane size."""
    if not 0 < len(report.reporter) <= 256:
        raise InvalidArgument("reporter: 1 to 256 characters", field="reporter")
    if len(report.replicas) > MOST_IN_ONE:
        raise InvalidArgument(f"replicas: more than {MOST_IN_ONE}", field="replicas")
    if len(report.models) > MOST_IN_ONE:
        raise InvalidArgument(f"models: more than {MOST_IN_ONE}", field="models")
    if sum(len(model.revisions) for model in report.models) > MOST_IN_ONE:
        raise InvalidArgument(f"models.revisions: more than {MOST_IN_ONE}", field="models.revisions")


def clocked(take: Callable[[LoadReport, float], None]) -> Take:
    """`take` with the time of now, monotonic seconds."""
    return lambda report: take(report, time.monotonic())
