"""Whether a thread's piece of work hangs: judged by its own usual time, and by what the thread does meanwhile. Pure.

On a busy machine a pass may take ten times as long as usual, and a replica that is given up for that is missed. So it
is not the time that is counted but the steps in which the thread stood still: it neither ran nor waited for a CPU nor
brought memory in from a disk. A thread that runs is slow at worst, unless it used a hundred times the time of such a
pass. On an accelerator a thread may also run while it waits for a kernel that never ends, so there only a thread that
gets no CPU is excused.
"""

from dataclasses import dataclass

from .short import Size

# Weight of the newest pass in the moving average of its size.
_EWMA = 0.2
# A size that was never seen is not expected to take longer than that, or than the longest that was seen. Seconds.
_UNSEEN_S = 6.0
# A thread that used that share of a step ran in it.
_RAN = 0.1


@dataclass(frozen=True, slots=True)
class Usage:
    """A thread at one moment.

    Attributes:
        runnable: it runs, or waits for a CPU.
        cpu_s: seconds of a CPU that it used so far.
        faults: pages that were brought in from a disk for it so far.
    """

    runnable: bool
    cpu_s: float
    faults: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a piece of work may take, whatever is usual for it, and how often the usual time.

    Attributes:
        still_s: standing still.
        busy_s: of a CPU.
        first_s: the same for work of which nothing is known: compilation, memory that is used for the first time.
        factor: how often the usual time it may stand still.
        busy_factor: how often the usual time it may compute.
    """

    still_s: float = 3.0
    busy_s: float = 30.0
    first_s: float = 60.0
    factor: float = 20.0
    busy_factor: float = 100.0

    def still(self, expected_s: float | None) -> float:
        """How long work that usually takes `expected_s` may stand still."""
        return max(self.still_s, self.first_s if expected_s is None else self.factor * expected_s)

    def busy(self, expected_s: float | None) -> float:
        """How long it may compute."""
        return max(self.busy_s, self.first_s if expected_s is None else self.busy_factor * expected_s)


class PassTimes:
    """What passes of each size usually take."""

    def __init__(self) -> None:
        self._seconds: dict[Size, float] = {}

    def __repr__(self) -> str:
        return f"<PassTimes {len(self._seconds)} sizes>"

    def observe(self, size: Size, seconds: float) -> None:
        """A pass of this size took so long."""
        known = self._seconds.get(size)
        self._seconds[size] = seconds if known is None else known + _EWMA * (seconds - known)

    def expected_s(self, size: Size) -> float | None:
        """What one of this size may be expected to take; None when no pass was seen at all.

        A size that was never seen takes at most as much more than a smaller one as it has more rows, each attending
        to as much more; that may be a lot more than it really takes, and is capped.
        """
        known = self._seconds.get(size)
        if known is not None:
            return known
        seen = list(self._seconds.items())
        if not seen:
            return None
        most = max(
            seconds * 2.0 ** (max(0, size[0] - rows) + max(0, size[1] - positions))
            for (rows, positions), seconds in seen
        )
        return min(most, max(_UNSEEN_S, *(seconds for _, seconds in seen)))


class Watch:
    """One thread, looked at in steps of a watcher that may be late itself: a step counts as one, however long it was.

    Args:
        limits: of its work.
        spins: a running thread may be one that waits (for an accelerator).
    """

    def __init__(self, limits: Limits, spins: bool = False) -> None:
        self._limits = limits
        self._spins = spins
        self._work = 0
        self._last: Usage | None = None
        # Of the present work, seconds: looked at, stood still, and of a CPU.
        self.seen_s = 0.0
        self.still_s = 0.0
        self.busy_s = 0.0

    def __repr__(self) -> str:
        return f"<Watch work={self._work} still={self.still_s:.1f}s busy={self.busy_s:.1f}s>"

    def look(self, work: int, usage: Usage | None, step_s: float, expected_s: float | None) -> str:
        """Take in one step; why the work hangs, or nothing.

        Args:
            work: a number of the piece of work; 0 when there is none.
            usage: of its thread; None when the system does not tell.
            step_s: length of a step.
            expected_s: what such work usually takes; None when nothing is known.
        """
        if work != self._work or not work:
            self._work, self._last = work, usage
            self.seen_s = self.still_s = self.busy_s = 0.0
            return ""
        last, self._last = self._last, usage
        self.seen_s += step_s
        if usage is None or last is None:
            self.busy_s += step_s
        else:
            used_s = max(0.0, usage.cpu_s - last.cpu_s)
            self.busy_s += used_s
            ran = used_s >= _RAN * step_s
            paged = usage.faults != last.faults
            excused = paged or (usage.runnable and not ran if self._spins else usage.runnable or ran)
            if not excused:
                self.still_s += step_s
        return self._verdict(expected_s)

    def _verdict(self, expected_s: float | None) -> str:
        usual = "" if expected_s is None else f", where {expected_s:.3g} s are usual"
        if self.still_s >= self._limits.still(expected_s):
            return f"it has stood still for {self.still_s:.1f} s{usual}"
        if self.busy_s >= self._limits.busy(expected_s):
            return f"it has computed for {self.busy_s:.1f} s{usual}"
        return ""
