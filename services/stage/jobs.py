"""Passes that wait for a partition's compute thread, and what becomes of them.

A pass that may (`Joint`) runs as one with those like it that wait right behind it when its turn comes, up to as many rows as a
head puts into one of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from .schedule import MAX_ROWS
from .short import Size

T = TypeVar("T")


@dataclass(slots=True)
class Timing:
    """When a pass was queued, started and ended, and when the one before it ended (0: there was none). Unix seconds.

    `sharing` is how many ran as one.
    """

    queued: float
    started: float
    ended: float
    before: float
    sharing: int = 1

    @property
    def queue_us(self) -> int:
        """Microseconds spent waiting for its turn."""
        return max(0, int((self.started - self.queued) * 1e6))

    @property
    def compute_us(self) -> int:
        """Microseconds spent computing."""
        return max(0, int((self.ended - self.started) * 1e6))

    def idle_us(self, since: float) -> int:
        """Microseconds without a pass before this one, counted from `since` (Unix seconds) at the earliest."""
        return max(0, int((self.started - max(self.before, since)) * 1e6)) if self.before else 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of a pass: `result`, or `error` when it raised or never ran."""

    timing: Timing
    result: T | None = None
    error: Exception | None = None


class Joint(Protocol):
    """A pass that may run as one with others.

    Attributes:
        rows: of it.
    """

    rows: int

    def joined(self, others: Sequence[Any]) -> tuple[Callable[[], list[Any]], Size]:
        """What gives the result of each of them, this one's first, or the exception that it raised; and how large it is."""


@dataclass(slots=True)
class Job:
    """One pass, or several that run as one.

    Attributes:
        work: what computes it; with mates it gives a list of results or exceptions, its own first.
        then: called with what became of it.
        size: see `short.size_of`; with mates that of all.
        queued: when it came, Unix seconds.
        joint: the same pass as one that others may join.
        thread: native id of the thread that runs it.
        mates: those that run as one with it.
    """

    work: Callable[[], Any]
    then: Callable[[Outcome[Any]], None]
    size: Size | None
    queued: float
    joint: Joint | None = None
    thread: int = 0
    mates: list["Job"] = field(default_factory=list)


class JobQueue:
    """What waits for one thread, in order."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # Looked at by the thread, and not taken yet.
        self._seen: list[Job | None] = []

    def put(self, job: Job | None) -> None:
        """Behind the others; None ends the thread."""
        self._jobs.put(job)

    def get(self) -> Job | None:
        """The next one, once there is one, with those that run as one with it."""
        job = self._seen.pop() if self._seen else self._jobs.get()
        if job is not None and job.joint is not None:
            self._join(job, job.joint)
        return job

    def take_all(self) -> list[Job]:
        """Those that the thread has not looked at yet; from any thread."""
        jobs: list[Job] = []
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return jobs
            if job is not None:
                jobs.append(job)

    def _join(self, job: Job, joint: Joint) -> None:
        rows, others = joint.rows, []
        while True:
            try:
                mate = self._jobs.get_nowait()
            except Empty:
                break
            if mate is None or mate.joint is None or rows + mate.joint.rows > MAX_ROWS:
                self._seen.append(mate)
                break
            rows += mate.joint.rows
            job.mates.append(mate)
            others.append(mate.joint)
        if others:
            job.work, job.size = joint.joined(others)


def apart(job: Job, outcome: Outcome[Any]) -> list[Outcome[Any]]:
    """What became of each of those that ran as one: they share its time, and waited each for itself."""
    timing = outcome.timing
    jobs = [job, *job.mates]
    results: list[Any] = [outcome.error] * len(jobs) if outcome.result is None else outcome.result
    found = []
    for each, result in zip(jobs, results, strict=True):
        # Nothing was idle before any but the first.
        before = timing.before if each is job else timing.started
        own = replace(timing, queued=each.queued, before=before, sharing=len(jobs))
        error = result if isinstance(result, Exception) else None
        found.append(Outcome(own, result if error is None else None, error))
    return found
