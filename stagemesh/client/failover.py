"""When a call is tried again, and where. Pure but for a lock; the clients do what it decides.

Inference changes nothing, so every call may be tried again. What bounds it: the call's deadline, so many attempts
without anything new, and for all calls of a client together a budget, so that retries never become the load.
"""

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagemesh.client.targets import FIRST_REST_S, Targets
from stagemesh.errors import Cancelled, DeadlineExceeded, ResourceExhausted, StagemeshError, Unavailable

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Of one call, without anything new in between."""
BUDGET_OF_CALLS, BUDGET_PER_S, BUDGET_AT_MOST = 0.2, 10.0, 100.0
"""Retries that a client may make: a fifth of its calls and ten a second, saved up to a hundred. The first retry of a
call whose connection broke is its own: a router that dies takes all of its streams at once, each moves once."""


@dataclass(frozen=True)
class Failure:
    """A call that failed. `answered`: the router itself said so; else the connection broke or there was none."""

    error: StagemeshError
    answered: bool

    @property
    def may_move(self) -> bool:
        """Whether another router may do better."""
        if isinstance(self.error, ResourceExhausted):
            return self.answered  # else it is gRPC's own: a message beyond its limit
        return isinstance(self.error, Unavailable | Cancelled)


@dataclass(frozen=True)
class ClientStats:
    """What a client did so far.

    `target` is the router it asks now. `retries` are attempts after the first of a call, `moves` those of them at another
    router than the one before, `resumed` streams that went on after a break, `gave_up` calls that failed in the
    end though another router might have helped, `over_budget` those of them for which the retry budget had no room.
    `failures` counts failed attempts by router.
    """

    target: str
    calls: int = 0
    retries: int = 0
    moves: int = 0
    resumed: int = 0
    gave_up: int = 0
    over_budget: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)


class Failover:
    """Of one client: its routers, its retry budget and its counts. Thread-safe."""

    def __init__(
        self, addresses: Sequence[str], *, attempts: int = ATTEMPTS, rng: random.Random, now: float
    ) -> None:
        self.attempts = attempts
        self.targets = Targets(addresses, rng)
        self.closed = False
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("calls", "retries", "moves", "resumed", "gave_up", "over_budget"), 0)
        self.failures = dict.fromkeys(addresses, 0)
        self.reached = False
        self._budget = BUDGET_AT_MOST
        self._filled = now

    def __repr__(self) -> str:
        return f"Failover({self.targets!r}, budget={self._budget:.1f})"

    def begin(self, deadline: float, now: float) -> "Journey":
        """A call begins; its first attempt never waits."""
        with self.lock:
            self.counts["calls"] += 1
            self._budget = min(self._budget + BUDGET_OF_CALLS, BUDGET_AT_MOST)
            chosen = self.targets.choose((), now)
        assert chosen is not None
        return Journey(self, chosen[0], deadline)

    def take(self, now: float) -> bool:
        """Take one retry out of the budget, if there is one; the caller holds the lock."""
        self._budget = min(self._budget + (now - self._filled) * BUDGET_PER_S, BUDGET_AT_MOST)
        self._filled = now
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        return True

    def stats(self) -> ClientStats:
        """The counts as they are now."""
        with self.lock:
            return ClientStats(target=self.targets.current, failures=dict(self.failures), **self.counts)


class Journey:
    """One call on its way over the routers. `address` is the one to ask; times are monotonic seconds."""

    def __init__(self, failover: Failover, address: str, deadline: float) -> None:
        self.address = address
        self._failover = failover
        self._deadline = deadline
        self._attempts = 1
        self._lost = 0
        # Routers that said they cannot, and until when they are not asked again.
        self._refused: dict[str, float] = {}
        self._heard = False

    def __repr__(self) -> str:
        return f"Journey({self.address}, attempts={self._attempts}, refused={sorted(self._refused)})"

    def left(self, now: float) -> float:
        """Seconds until the deadline; raises `DeadlineExceeded` when it has passed."""
        if now >= self._deadline:
            raise DeadlineExceeded("the deadline passed before a router answered")
        return self._deadline - now

    def heard(self) -> None:
        """The router answered, or sent more of its answer."""
        if self._heard:
            return
        self._heard = True
        self._attempts, self._lost = 1, 0
        self._refused.clear()
        with self._failover.lock:
            self._failover.reached = True
            self._failover.targets.answered(self.address)

    def failed(self, failure: Failure, now: float, *, resumes: bool = False) -> float:
        """Seconds to wait before the next attempt, at `address`, which may have changed.

        `resumes` says that a stream goes on with it. Raises the failure's error when the call is not to be tried again.
        """
        with self._failover.lock:
            return self._failed(failure, now, resumes)

    def _failed(self, failure: Failure, now: float, resumes: bool) -> float:
        failover, error, before = self._failover, failure.error, self.address
        targets, counts = failover.targets, failover.counts
        self._heard = False
        if not failure.may_move or failover.closed:
            if failure.answered:
                failover.reached = True
            raise error
        failover.failures[before] += 1
        busy = isinstance(error, ResourceExhausted)
        if failure.answered:
            failover.reached = True
            rest = FIRST_REST_S if error.retry_after_s is None else error.retry_after_s
            self._refused[before] = now + rest
            targets.refused(before, now, rest)
        else:
            self._lost += 1
            targets.lost(before, now)
        chosen = targets.choose([each for each, until in self._refused.items() if until > now], now)
        # Nobody has ever answered, and all were asked: more likely a wrong address than a broken router.
        nowhere = not failover.reached and self._lost >= len(targets.addresses)
        if chosen is None or nowhere or self._attempts >= failover.attempts:
            raise self._given_up(error, nowhere)
        self.address, wait = chosen
        # Who is overloaded says so at once; waiting would hide it.
        if (busy and wait) or now + wait >= self._deadline:
            raise self._given_up(error, nowhere)
        own = self._attempts == 1 and not busy
        if not own and not failover.take(now):
            counts["over_budget"] += 1
            raise self._given_up(error, nowhere)
        self._attempts += 1
        counts["retries"] += 1
        counts["moves"] += self.address != before
        counts["resumed"] += resumes
        log.info("client.retry from=%s to=%s wait_s=%.2f: %s", before, self.address, wait, error.message)
        return wait

    def _given_up(self, error: StagemeshError, nowhere: bool) -> StagemeshError:
        self._failover.counts["gave_up"] += 1
        addresses = self._failover.targets.addresses
        if nowhere and len(addresses) > 1:
            return Unavailable(f"nothing answers at {', '.join(addresses)}")
        return error
