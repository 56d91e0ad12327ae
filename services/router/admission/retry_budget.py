"""How many retries a model's traffic may cause: a share of its requests, and a few a second. Pure.

Without such a bound a stage that fails under load gets every request several times, and so never recovers.
"""

RETRY_SHARE = 0.2
RETRIES_PER_S = 10.0
WINDOW_S = 10.0
"""Retries that were not used are kept for that long."""


class RetryBudget:
    """A token bucket: each request puts a share of a retry into it, time puts in a few, and a retry takes one out.

    Args:
        share: retries for each request.
        per_s: retries for each second, so that a model with little traffic has some.
        window_s: at most what time gives in that many seconds lies in it, and as much again from requests.
        now: monotonic seconds; times of later calls must not be smaller.
    """

    def __init__(
        self,
        now: float,
        *,
        share: float = RETRY_SHARE,
        per_s: float = RETRIES_PER_S,
        window_s: float = WINDOW_S,
    ) -> None:
        self.denied = 0
        self._share = share
        self._per_s = per_s
        self._most = per_s * window_s
        # Apart, because what the one may hold says nothing about the other.
        self._timed = self._most
        self._earned = 0.0
        self._window_s = window_s
        self._at = now

    def __repr__(self) -> str:
        return f"RetryBudget({self._timed + self._earned:.1f} retries left, {self.denied} denied)"

    def request(self, now: float) -> None:
        """A request came in: it brings its share."""
        self._pass(now)
        self._earned += self._share

    def may_retry(self, now: float) -> bool:
        """Whether a retry is within the budget; True takes it out."""
        self._pass(now)
        if self._earned >= 1.0:
            self._earned -= 1.0
            return True
        if self._timed + self._earned >= 1.0:
            self._timed -= 1.0 - self._earned
            self._earned = 0.0
            return True
        self.denied += 1
        return False

    def _pass(self, now: float) -> None:
        passed = max(now - self._at, 0.0)
        self._at += passed
        self._timed = min(self._timed + passed * self._per_s, self._most)
        # Shares of requests of long ago fade: they are no reason to retry now.
        self._earned *= max(0.0, 1.0 - passed / self._window_s)
