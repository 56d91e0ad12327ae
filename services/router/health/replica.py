"""Whether one replica is well, as far as its own sessions tell. A pure state machine; time comes in as an argument.

    well -> held back after each failure; then one session at a time tries it, until one gets on
         -> ejected for its failures, or for being slow; then one canary at a time, until enough of them did well
         -> rejoining: its share grows -> well

A canary is a session like any other: it is one that would be recovered elsewhere if the replica broke again.
"""

import math
from dataclasses import dataclass

HOLD_S, LONGEST_HOLD_S = 2.0, 30.0
"""How long a replica that failed is held back; twice as long when it fails again at the first try, and so on."""
CONSECUTIVE = 5
"""So many failures with no success in between eject it, however many sessions went well before."""
FAILURES = 1.5
"""So many failures eject it: two within twenty seconds and forty sessions."""
FADE_S, FADE_SESSIONS = 30.0, 60.0
"""A failure counts less as time passes and as sessions are sent, with these constants."""
CANARY_S = 5.0
"""A canary that said nothing for so long does not keep the next one away."""
CANARY_SHARE, CANARY_WAIT_S = 25, 15.0
"""A canary goes out once so many sessions went elsewhere, or when nothing much is going on."""
PROVEN_S = 1.0
"""A canary that was heard of, and did not fail for so long, did well: it may be a long one, or its client left."""
FIRST_SHARE = 0.05
"""What its share begins with when it comes back."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a replica is ejected, how many canaries have to do well, and how long its share takes to grow back.

    The first doubles each time, up to a limit, until it was well for `FORGIVEN_S`, and with `more` so does the second.
    """

    eject_s: float
    canaries: int
    rejoin_s: float
    more: bool = True


TERMS = {
    # One that fails one session in twenty gets past a single canary easily.
    "failing": Terms(10.0, 3, 20.0),
    "errors": Terms(10.0, 3, 20.0),
    # A canary tells by what its passes take, but one may be lucky.
    "slow": Terms(5.0, 2, 10.0, more=False),
}
LONGEST_EJECT_S, MOST_CANARIES, FORGIVEN_S = 60.0, 24, 60.0


@dataclass(slots=True)
class Ejection:
    """Why a replica is ejected, and until when at least. `normal_ms` is what its passes took when it was well."""

    reason: str
    until: float
    normal_ms: float = 0.0


class ReplicaHealth:
    """Counts failures of sessions and keeps the state of one replica. Who may be ejected is decided among its peers."""

    def __init__(self) -> None:
        self.ejection: Ejection | None = None
        self.canary_at = math.inf
        self.slow_since = math.inf
        self.due = ""
        self._failures, self._faded_at = 0.0, -math.inf
        self._consecutive, self._failed_at = 0, -math.inf
        self._held_until, self._hold_s = -math.inf, HOLD_S
        self._unproven = False
        self._succeeded = False
        self._wanted = 0
        self._passed_over = 0
        self._times, self._rejoined_at, self._rejoin_s = 0, -math.inf, 1.0

    def __repr__(self) -> str:
        counts = f"{self._failures:.1f} failures, {self._consecutive} in a row"
        return f"<ReplicaHealth {self.ejection or ('unproven' if self._unproven else 'well')}, {counts}>"

    def words(self, now: float) -> str:
        """The state for an operator; "well" when there is nothing to say."""
        if self.ejection is not None:
            left = self.ejection.until - now
            what = (
                f"{left:.0f} s left"
                if left > 0
                else "canary runs"
                if self._trying(now)
                else "awaits a canary"
            )
            return f"ejected ({self.ejection.reason}), {what}"
        if self._unproven:
            return "held back" if now < self._held_until else "on trial"
        share = self.share(now)
        return "well" if share >= 1 else f"rejoining at {share:.0%}"

    def began(self) -> None:
        """A session was sent to it."""
        self._failures -= self._failures / FADE_SESSIONS

    def failed(self, now: float) -> None:
        """It broke under a session. A second time within the time it is held back for the first adds no waiting."""
        keep = math.exp(min(self._faded_at - now, 0.0) / FADE_S)
        self._failures, self._faded_at = self._failures * keep + 1, now
        self._consecutive = self._consecutive + 1 if now - self._failed_at < FADE_S else 1
        self._failed_at = now
        self._succeeded = False
        if now >= self._held_until:
            self._hold_s = min(self._hold_s * 2, LONGEST_HOLD_S) if self._unproven else HOLD_S
            self._held_until = now + self._hold_s
        self._unproven = True
        self.canary_at = math.inf
        if self.ejection is not None:
            if now >= self.ejection.until:
                self.eject(self.ejection.reason, now, self.ejection.normal_ms)
        elif self._consecutive >= CONSECUTIVE:
            self.due = "failing"
        elif self._failures >= FAILURES:
            self.due = "errors"

    def succeeded(self, now: float) -> None:
        """A session came to its end there."""
        self._consecutive = 0
        # What ends while it is held back, or before a canary went out, began before it broke.
        if now >= self._held_until and (self.ejection is None or self.canary_at <= now):
            self._succeeded = True

    def eject(self, reason: str, now: float, normal_ms: float) -> None:
        """Take it out, longer than the last time."""
        if self.ejection is None and now - self._rejoined_at > FORGIVEN_S:
            self._times = 0
        terms = TERMS[reason]
        until = now + min(terms.eject_s * 2**self._times, LONGEST_EJECT_S)
        self._wanted = min(terms.canaries * 2 ** (self._times * terms.more), MOST_CANARIES)
        self._times = min(self._times + 1, 10)
        self.ejection = Ejection(reason, until, normal_ms)
        self.canary_at = self.slow_since = math.inf
        self.due, self._succeeded, self._passed_over = "", False, 0

    def rejoin(self, now: float) -> None:
        """Let it back in, with a small share at first."""
        if self.ejection is not None:
            self._rejoin_s = TERMS[self.ejection.reason].rejoin_s
        self.ejection = None
        self.canary_at = self.slow_since = math.inf
        self.due, self._unproven, self._succeeded = "", False, False
        self._consecutive, self._rejoined_at = 0, now

    def settle(self, now: float, heard_at: float) -> None:
        """Believe what sessions have shown of one that is not ejected; `heard_at`: when it last reported a load."""
        if self.due and now > self._failed_at + FADE_S:
            self.due = ""  # there was no room to eject it, and it got on
        proven = self._succeeded or heard_at > self.canary_at
        if self.ejection is None and self._unproven and now >= self._held_until and proven:
            self._unproven, self._succeeded, self.canary_at = False, False, math.inf

    def canary_ended(self, heard_at: float, now: float) -> bool:
        """Whether the canary of an ejected replica got through: it came to its end, or was heard of and did not fail."""
        return self._succeeded or (heard_at > self.canary_at and now >= self.canary_at + PROVEN_S)

    def next_canary(self) -> None:
        """It got through; another one may go."""
        self.canary_at, self._succeeded = math.inf, False

    def canary_did_well(self) -> bool:
        """Whether that is enough."""
        self._wanted -= 1
        self.next_canary()
        return self._wanted <= 0

    def usable(self) -> bool:
        """Whether it takes part in the balance."""
        return self.ejection is None and not self._unproven

    def share(self, now: float) -> float:
        """How much of its due it gets, 1 unless it rejoined a moment ago."""
        return min(1.0, max(FIRST_SHARE, (now - self._rejoined_at) / self._rejoin_s))

    def passed_over(self) -> None:
        """A session of its stage goes elsewhere."""
        self._passed_over += 1

    def takes_canary(self, now: float) -> bool:
        """Whether the next session should try it."""
        if self._trying(now):
            return False
        if self.ejection is None:
            return self._unproven and now >= self._held_until
        if now < max(self.ejection.until, self._held_until):
            return False
        return self._passed_over >= CANARY_SHARE or now >= self.ejection.until + CANARY_WAIT_S

    def canary(self, now: float) -> None:
        """The next session does."""
        self.canary_at, self._passed_over, self._succeeded = now, 0, False

    def troubled(self, now: float) -> bool:
        """Whether a choice has to ask about it."""
        return not self.usable() or bool(self.due) or now < self._rejoined_at + self._rejoin_s

    def _trying(self, now: float) -> bool:
        return self.canary_at <= now < self.canary_at + CANARY_S
