"""What a model gets done: the most that it did lately, and what of that a request takes. Pure.

A unit is a token of a generation, or a row of a stateless batch.

As congestion control by delivery rate does (Cardwell et al., "BBR", ACM Queue 2016): what was delivered in the last ten
seconds is what can be, as long as somebody waited for more, or each request became much slower than with fewer others;
else it is a lower bound. By Little's law N requests that run at once take N / rate. A rise counts within a second, and
what stands still says nothing.
"""

from collections import deque
from dataclasses import dataclass

BUCKET_S = 1.0
EARLY_S = 0.2
"""From that age on what was delivered in the present second counts, too."""
KEPT_S = 10.0
ASSUMED_PER_S = 3.0
"""Requests a second that a model is taken to be good for until it was once asked for more than it could do."""
_WEIGHT = 0.05
"""Of the newest request in the mean: about the last twenty count."""
_FADES_PER_S = 0.99
_ABOUT, _MUCH = 1.2, 2.0


@dataclass(frozen=True, slots=True)
class _Second:
    ended: float
    rate: float
    # Somebody waited all the time: more than that was not to be had.
    busy: bool


class Throughput:
    """Of one model, as seen from here. `used`: of the units that they may have, the part that requests turn out to have."""

    def __init__(self, now: float) -> None:
        self._since = self._at = now
        self._units = 0.0
        self._busy = True
        self._active = 0
        self._seconds: deque[_Second] = deque()
        self.used = 1.0
        # The rate when somebody waited last; 0: nobody did yet.
        self._proven = 0.0
        # Units a second of each request that ran, and how many these were: in the last second, and at best.
        self._each, self._among = 0.0, 0.0
        self._best_each, self._best_among = 0.0, 0.0

    def __repr__(self) -> str:
        rate = max((each.rate for each in self._seconds), default=0.0)
        return f"Throughput({rate:.1f} units/s, {self.used:.0%} of what requests may have)"

    def add(self, units: float, now: float, active: int, waiting: bool) -> None:
        """So much was done, while so many run and others wait or do not."""
        if now - self._since >= BUCKET_S:
            self._close(now, active)
        self._units += units
        self._busy = self._busy and waiting
        self._active = active
        self._at = now

    def woke(self, now: float) -> None:
        """A request begins where none ran: that nothing was done until now says nothing."""
        if now - self._at >= BUCKET_S:
            self._since, self._units, self._busy = now, 0.0, True

    def ended(self, units: float, size: float, *, well: bool) -> None:
        """A request of at most `size` units ended after `units`; the least that it has when it was cut short."""
        used = min(units / size, 1.0)
        if units and (well or used > self.used):
            self.used += _WEIGHT * (used - self.used)

    def run_s(self, at_once: int, size: float, now: float) -> float:
        """Seconds that a request of at most `size` units is expected to take when so many run."""
        units = max(self.used * size, 1.0)
        return at_once * units / self._rate(units, now)

    def _rate(self, units: float, now: float) -> float:
        """Units a second, for requests of so many."""
        self._forget(now)
        most = self._early(now)
        if self._seconds:
            usual = sum(each.rate for each in self._seconds) / len(self._seconds)
            most = max(most, usual, self._seconds[-1].rate)
        slowed = self._each * _MUCH <= self._best_each and bool(self._seconds)
        # The first units of a burst take longest: before a second is over they bound it from below only.
        if self._seconds and most and (slowed or self._busy or any(each.busy for each in self._seconds)):
            self._proven = most
            return most
        # It was not asked for more, and may be able to do more.
        return max(most, self._proven or ASSUMED_PER_S * units)

    def known(self, now: float) -> bool:
        """Whether the rate was measured lately."""
        self._forget(now)
        return bool(self._seconds) or self._early(now) > 0

    def _early(self, now: float) -> float:
        """The rate of the present second: of its first units a part was made before."""
        passed = now - self._since
        return max(self._units - self._active, 0.0) / passed if EARLY_S <= passed <= 2 * BUCKET_S else 0.0

    def unslowed(self, at_once: int) -> bool:
        """Whether each of so many gets on about as fast as when there were half as many, or fewer."""
        return 0 < self._best_among * 2 <= at_once and self._best_each <= self._each * _ABOUT

    def _close(self, now: float, active: int) -> None:
        """The present second is over; where little is done it took longer, until something was."""
        passed = now - self._since
        if self._units:
            rate = self._units / passed
            self._among = max((self._active + active) / 2, 1.0)
            self._each = rate / self._among
            self._best_each *= _FADES_PER_S**passed
            if self._each >= self._best_each:
                self._best_among = min(self._best_among or self._among, self._among)
                self._best_each = self._each
            elif self._each * _ABOUT >= self._best_each:
                self._best_among = min(self._best_among, self._among)
            self._seconds.append(_Second(now, rate, self._busy))
        self._since, self._units, self._busy = now, 0.0, True

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0].ended > KEPT_S:
            self._seconds.popleft()
