"""What a tenant may ask for: requests and tokens a second, and requests at once. Pure; time comes in as an argument.

Token buckets (Turner, "New directions in communications", IEEE Communications 1986). How many tokens a request takes is known when it
is over: it is let in while the bucket holds what it may take at most (or is full, for one that may take more than that), is
charged with it, and what it did not take comes back. Prompts are charged when they have been counted, so a bucket may go
below zero, and whoever emptied it waits. Over any time t a tenant gets at most rate x t + burst + one request.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagemesh.errors import ResourceExhausted

AGAIN_S = 1.0
"""When to try again where too many run at once: nobody knows when one of them ends."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second on average, and so many at once; `name` is what the configuration calls it."""

    name: str
    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What is limited; None is not."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant's weight in the queue, its limits, and those for single models, which hold beside them."""

    weight: float = 1.0
    limits: Limits = Limits()
    models: Mapping[str, Limits] = field(default_factory=dict)


class QuotaExceeded(ResourceExhausted):
    """A request beyond a quota; `quota` is its name in the configuration."""

    quota = ""


class Bucket:
    """What is left of a rate; full at first."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._level = math.inf
        self._at = 0.0

    def level(self, rate: Rate, share: float, now: float) -> float:
        """What is in it at `now`, where `share` of the rate is to be had here."""
        grown = self._level + max(now - self._at, 0.0) * rate.per_s * share
        self._level, self._at = min(grown, burst_of(rate, share)), now
        return self._level

    def wait_s(self, rate: Rate, share: float, amount: float, now: float) -> float:
        """How long until `amount` may be taken; 0 means now."""
        lacking = min(amount, burst_of(rate, share)) - self.level(rate, share, now)
        # What a float cannot tell from enough is enough.
        return lacking / (rate.per_s * share) if lacking > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Take it, below zero if need be; less than zero puts it back."""
        self._level -= amount


def burst_of(rate: Rate, share: float) -> float:
    """What may be taken at once where `share` of the rate is to be had; one at least."""
    return max(1.0, rate.burst * share)


class _Scope:
    """One limit's state: of a tenant, or of a tenant and a model."""

    __slots__ = ("active", "limits", "requests", "tokens", "whose")

    def __init__(self, limits: Limits, whose: str) -> None:
        self.limits = limits
        self.whose = whose
        self.requests, self.tokens = Bucket(), Bucket()
        self.active = 0


@dataclass(slots=True)
class Bill:
    """What one request was charged with so far, until `Quotas.leave`."""

    tenant: str
    scopes: list[_Scope]
    tokens: float


class Quotas:
    """The state of every limit of every tenant. O(1) for each request; as many entries as the configuration has."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = tenants
        self._scopes: dict[tuple[str, str], _Scope] = {}

    def __repr__(self) -> str:
        active = {scope.whose: scope.active for scope in self._scopes.values() if scope.active}
        return f"Quotas({len(self._tenants)} tenants, active={active})"

    def enter(
        self, tenant: str, model: str, tokens: float, now: float, share: float = 1.0, *, begun: bool = False
    ) -> Bill:
        """A request comes that may make so many tokens; `leave` its bill in the end.

        Args:
            tenant: whose it is.
            model: which model it asks.
            tokens: that it makes at most; 0 where only its prompt counts.
            now: seconds on the caller's clock.
            share: of each limit, the part that is to be had here: one of n routers.
            begun: it began elsewhere and is charged, but not refused.

        Raises:
            QuotaExceeded: a limit is reached; nothing is charged then.
        """
        scopes = self._scopes_of(tenant, model) if self._tenants else []
        if not begun:
            for scope in scopes:
                self._check(scope, tokens, now, share)
        for scope in scopes:
            scope.active += 1
            scope.requests.take(1.0)
            scope.tokens.take(tokens)
        return Bill(tenant, scopes, tokens)

    def add(self, bill: Bill, tokens: float) -> None:
        """It turns out to take so many more: its prompt was counted."""
        bill.tokens += tokens
        for scope in bill.scopes:
            scope.tokens.take(tokens)

    def leave(self, bill: Bill, used: float) -> None:
        """It is over and took so many tokens in all."""
        for scope in bill.scopes:
            scope.active -= 1
            scope.tokens.take(used - bill.tokens)

    def undo(self, bill: Bill) -> None:
        """It was not let in for another reason: as if it had never come."""
        self.leave(bill, 0.0)
        for scope in bill.scopes:
            scope.requests.take(-1.0)

    def _scopes_of(self, name: str, model: str) -> list[_Scope]:
        tenant = self._tenants.get(name)
        if tenant is None:
            return []
        found = [self._scope(tenant.limits, name, "")]
        if model in tenant.models:
            found.append(self._scope(tenant.models[model], name, model))
        return found

    def _scope(self, limits: Limits, tenant: str, model: str) -> _Scope:
        scope = self._scopes.get((tenant, model))
        if scope is None:
            whose = f"tenant {tenant!r}" + (f", model {model!r}" if model else "")
            scope = self._scopes[tenant, model] = _Scope(limits, whose)
        return scope

    def _check(self, scope: _Scope, tokens: float, now: float, share: float) -> None:
        limits = scope.limits
        if limits.concurrent is not None and scope.active >= (most := places_of(limits.concurrent, share)):
            raise _exceeded("concurrent", f"{most} requests at once", scope, share, AGAIN_S)
        for rate, bucket, amount, what in (
            (limits.requests, scope.requests, 1.0, "requests"),
            (limits.tokens, scope.tokens, max(tokens, 1.0), "tokens"),
        ):
            if rate is not None and (wait_s := bucket.wait_s(rate, share, amount, now)):
                here = f"{rate.per_s * share:.4g} {what} a second, {burst_of(rate, share):.4g} at once"
                raise _exceeded(rate.name, here, scope, share, wait_s)


def places_of(concurrent: int, share: float) -> int:
    """Requests at once that may run here; one at least, so that n routers may let n run."""
    return max(1, math.floor(concurrent * share + 1e-9))


def _exceeded(quota: str, here: str, scope: _Scope, share: float, wait_s: float) -> QuotaExceeded:
    part = f" at this router, which has {share:.3g} of the quota" if share < 1 else ""
    error = QuotaExceeded(
        f"quota {quota} of {scope.whose}: {here}{part}; try again in {wait_s:.3g} s",
        retry_after_s=max(wait_s, 0.001),
    )
    error.quota = quota
    return error
