"""Whether what is measured is still what it was: drift of the verified error, and of the hit rate. Pure.

Both are Page's cumulative sums (Page 1954, "Continuous inspection schemes"). That of the errors is in the form of an
e-detector (Shin, Ramdas and Rinaldo 2022): as long as the rate is within what is allowed, it takes `ALARM` verified hits or
more on average until a false alarm, whatever the traffic.
"""

import math

ALARM = 1000.0
"""How much likelier the worse rate must have become than the allowed one, since the moment that fits best."""
_BATCH = 100
_REFERENCE = 5
_SLACK, _LIMIT = 0.5, 6.0


class ErrorAlarm:
    """Watches verified hits; `level` is 0..1, and an alarm at 1."""

    def __init__(self, allowed: float, log_ratio: float = 0.0) -> None:
        worse = min(5 * allowed, (1 + allowed) / 2)
        self._wrong = math.log(worse / allowed)
        self._right = math.log((1 - worse) / (1 - allowed))
        self.log_ratio = max(log_ratio, 0.0)

    def __repr__(self) -> str:
        return f"ErrorAlarm({self.level:.2f})"

    @property
    def level(self) -> float:
        """How close it is to an alarm."""
        return min(self.log_ratio / math.log(ALARM), 1.0)

    def add(self, wrong: bool) -> bool:
        """A hit was verified; whether the rate is past what is allowed."""
        self.log_ratio = max(self.log_ratio, 0.0) + (self._wrong if wrong else self._right)
        if self.log_ratio < math.log(ALARM):
            self.log_ratio = max(self.log_ratio, 0.0)
            return False
        return True


class HitRate:
    """Compares batches of 100 lookups with the first five; a drift makes the next five what is usual."""

    def __init__(self) -> None:
        self.usual = 0.0
        self.lately = 0.0
        self.known = False
        self._hits = 0
        self._lookups = 0
        self._first: list[float] = []
        self._up = self._down = 0.0

    def __repr__(self) -> str:
        return f"HitRate(usual={self.usual:.3f}, lately={self.lately:.3f})"

    def add(self, lookups: int, hits: int) -> str:
        """So many more were looked up and hit; "up" or "down" when the rate has drifted, else ""."""
        self._lookups += lookups
        self._hits += hits
        if self._lookups < _BATCH:
            return ""
        # A report of many lookups is so many batches of the same rate.
        count, rate = self._lookups // _BATCH, min(self._hits / self._lookups, 1.0)
        self._hits = self._lookups = 0
        self.lately = rate
        for _ in range(min(count, 100)):
            if drifted := self._batch(rate):
                return drifted
        return ""

    def _batch(self, rate: float) -> str:
        if not self.known:
            self._first.append(rate)
            self.usual = sum(self._first) / len(self._first)
            self.known = len(self._first) >= _REFERENCE
            return ""
        spread = math.sqrt(max(self.usual * (1 - self.usual), 0.01) / _BATCH)
        # The usual rate is an estimate from five batches itself.
        score = (rate - self.usual) / (spread * math.sqrt(1 + 1 / _REFERENCE))
        self._up = max(0.0, self._up + score - _SLACK)
        self._down = max(0.0, self._down - score - _SLACK)
        drifted = "up" if self._up > _LIMIT else "down" if self._down > _LIMIT else ""
        if drifted:
            self._up = self._down = 0.0
            self.known = False
            self._first = [rate]
        return drifted
