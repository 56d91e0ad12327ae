"""How long a replica's passes take, as its reports tell it. Pure; time comes in as an argument."""

import math
from collections import deque
from statistics import median

from ..policies.candidate import FADE_S, UNSURE

SPAN_S = 60.0
"""The mean fades with this time constant."""
BUCKET_S = 1.0
"""Reports within one such stretch count once: what disturbs a pass disturbs those next to it as well."""
FEWEST_BUCKETS = 8
GUESS, GUESS_WEIGHT = 0.7, 8.0
"""What the spread of log(step time) is taken to be before it is known: as if so many buckets had said so."""
SURE = 2.8
"""Standard errors within which the difference of two means is no difference: twice the square root of two."""
RECENT = 8
RECENT_S = 5.0
"""What says how a replica does now: so many reports, none older than this."""
FEWEST_RECENT = 5


class StepTimes:
    """Step times of one replica: a peak that reacts at once, a mean over a minute, and the last few.

    `peak_ms` follows a slower report at once and a faster one gradually. `mean_ms` is the geometric mean over about
    `SPAN_S`, 0 while unknown, and `doubt` the factor within which it is right.
    """

    __slots__ = (
        "_count",
        "_logs",
        "_mean",
        "_opened",
        "_recent",
        "_spread",
        "_sum",
        "doubt",
        "mean_ms",
        "peak_at",
        "peak_ms",
    )

    def __init__(self) -> None:
        self.peak_ms, self.peak_at = 0.0, -math.inf
        self.mean_ms, self.doubt = 0.0, UNSURE
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        # The bucket that is open: when it began, sum and number of logs.
        self._opened, self._sum, self._logs = -math.inf, 0.0, 0
        # Faded over closed buckets: their number, mean and sum of squared deviations.
        self._count, self._mean, self._spread = 0.0, 0.0, 0.0

    def __repr__(self) -> str:
        return f"StepTimes(peak={self.peak_ms:.2f} ms, mean={self.mean_ms:.2f} ms within x{self.doubt:.2f})"

    def report(self, step_ms: float, now: float) -> None:
        """Take a reported moving average of a pass; what is no positive number is ignored, a repetition too."""
        if not (step_ms > 0 and math.isfinite(step_ms)):
            return
        keep = math.exp(min(self.peak_at - now, 0.0) / FADE_S) if self.peak_ms else 0.0
        self.peak_ms, self.peak_at = max(step_ms, self.peak_ms * keep + step_ms * (1 - keep)), now
        if self._recent and self._recent[-1][1] == step_ms:
            return  # told again, without a pass in between
        self._recent.append((now, step_ms))
        if now >= self._opened + BUCKET_S:
            self._close(now)
        self._sum += math.log(step_ms)
        self._logs += 1

    def now_ms(self, now: float, *, since: float = -math.inf) -> float | None:
        """The median of what was reported lately and after `since`; None when that is too little to judge by."""
        oldest = max(now - RECENT_S, since)
        fresh = [ms for at, ms in self._recent if at > oldest]
        return median(fresh) if len(fresh) >= FEWEST_RECENT else None

    def mean_since(self, since: float) -> float | None:
        """The mean of the last few reports after `since`; None when there is none."""
        fresh = [ms for at, ms in self._recent if at > since]
        return sum(fresh) / len(fresh) if fresh else None

    def _close(self, now: float) -> None:
        """Fold the open bucket into the mean, and open the next one."""
        if self._logs:
            fade = math.exp(-min(now - self._opened, SPAN_S * 20) / SPAN_S)
            value = self._sum / self._logs
            self._count = self._count * fade + 1.0
            ahead = value - self._mean
            self._mean += ahead / self._count
            self._spread = self._spread * fade + ahead * (value - self._mean)
            if self._count >= FEWEST_BUCKETS:
                self.mean_ms = math.exp(self._mean)
                variance = (self._spread + GUESS_WEIGHT * GUESS**2) / (self._count + GUESS_WEIGHT)
                self.doubt = min(UNSURE, math.exp(SURE * math.sqrt(variance / self._count)))
            else:
                self.mean_ms, self.doubt = 0.0, UNSURE
        self._opened, self._sum, self._logs = now, 0.0, 0
