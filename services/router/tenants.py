"""Tenants: their weights and quotas as the file of API keys gives them, and how requests are counted against them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from stagemesh import records
from stagemesh.errors import ConfigError, InvalidArgument, ResourceExhausted, StagemeshError
from stagemesh.metrics import counter, tallies

from .admission.quotas import Bill, Limits, QuotaExceeded, Quotas, Rate, Tenant
from .auth import read_sections
from .membership import Membership

MAX_LABELS = 100
"""Tenants with metrics of their own; those beyond, and those that the file does not name, are "other"."""
OTHER = "other"
DEFAULT_BURST_S = 10.0
_RATES = {
    "requests_per_s": ("requests", 1.0, DEFAULT_BURST_S),
    "requests_per_min": ("requests", 60.0, 60.0),
    "tokens_per_s": ("tokens", 1.0, DEFAULT_BURST_S),
    "tokens_per_min": ("tokens", 60.0, 60.0),
}
_LIMITS = {*_RATES, "burst_s", "concurrent"}
MAX_WEIGHT = 1000.0


class Tenants:
    """Counts each request of a tenant: `with tenants.billed(...) as billed:` around all of it.

    A quota is divided among the routers that are registered: each of n gives a tenant a part of 1 / n.
    """

    def __init__(
        self,
        tenants: Mapping[str, Tenant],
        membership: Membership,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tenants = tenants
        self._quotas = Quotas(tenants)
        self._membership = membership
        self._clock = clock
        self._seen, self._share = -1, 1.0
        self._labels = {name: name for name in list(tenants)[:MAX_LABELS]}
        self._requests = tallies(
            "stagemesh_tenant_requests_total",
            f"Requests by tenant; more than {MAX_LABELS} tenants are one.",
            ("tenant",),
        )
        self._tokens = tallies(
            "stagemesh_tenant_tokens_total", "Prompt and new tokens that quotas count.", ("tenant",)
        )
        self._refusals = counter(
            "stagemesh_tenant_refusals_total", "Requests beyond a quota, by quota.", ("tenant", "quota")
        )

    def __repr__(self) -> str:
        return f"Tenants({self._quotas!r}, share={self.share:.3g})"

    def weight(self, tenant: str) -> float:
        """Its weight where requests wait."""
        found = self._tenants.get(tenant)
        return 1.0 if found is None else found.weight

    @property
    def share(self) -> float:
        """The part of each quota that is to be had at this router."""
        if self._seen != self._membership.version:
            self._seen = self._membership.version
            self._share = 1 / max(1, len(self._membership.services_of("router")))
        return self._share

    def billed(self, tenant: str, model: str, tokens: float = 0.0, *, begun: bool = False) -> "Billed":
        """A context manager around a request that makes so many new tokens at most; raises `QuotaExceeded` on entry."""
        return Billed(self, tenant, model, tokens, begun)

    def enter(self, tenant: str, model: str, tokens: float, begun: bool) -> Bill:
        """See `Quotas.enter`; counts it."""
        label = self._labels.get(tenant, OTHER)
        self._requests.count(label)
        try:
            share = self._share if self._seen == self._membership.version else self.share
            return self._quotas.enter(tenant, model, tokens, self._clock(), share, begun=begun)
        except QuotaExceeded as error:
            self._refusals.labels(label, error.quota).inc()
            raise

    def add(self, bill: Bill, tokens: float) -> None:
        """See `Quotas.add`."""
        self._quotas.add(bill, tokens)

    def leave(self, bill: Bill, used: float, *, came_to_nothing: bool) -> None:
        """See `Quotas.leave`; what came to nothing for a reason of ours is as if it had never come."""
        if came_to_nothing:
            self._quotas.undo(bill)
            return
        self._quotas.leave(bill, used)
        if used:
            self._tokens.count(self._labels.get(bill.tenant, OTHER), amount=used)


class Billed:
    """One request's account. Nothing is charged for what was answered from the cache, or not at all."""

    __slots__ = ("_begun", "_bill", "_model", "_prompt", "_tenant", "_tenants", "_tokens", "_used")

    def __init__(self, tenants: Tenants, tenant: str, model: str, tokens: float, begun: bool) -> None:
        self._tenants = tenants
        self._tenant, self._model, self._tokens, self._begun = tenant, model, tokens, begun
        self._bill: Bill | None = None
        self._prompt = 0.0
        self._used: float | None = None

    def prompt(self, tokens: float) -> None:
        """The prompt has so many."""
        assert self._bill is not None
        self._prompt = tokens
        self._tenants.add(self._bill, tokens)

    def computed(self, tokens: float = 0.0) -> None:
        """So much was computed for it in the end, beside its prompt; not called: nothing was."""
        self._used = self._prompt + tokens

    def __enter__(self) -> "Billed":
        self._bill = self._tenants.enter(self._tenant, self._model, self._tokens, self._begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bill is not None
        # A request that is wrong counts as one; what fails for a reason of ours does not.
        wrong = isinstance(error, StagemeshError) and error.http_status < ResourceExhausted.http_status
        nothing = isinstance(error, Exception) and not wrong and not self._used
        self._tenants.leave(self._bill, self._used or 0.0, came_to_nothing=nothing)


def load_tenants(path: Path) -> dict[str, Tenant]:
    """The `tenants` of the file of API keys; empty without any. Raises `ConfigError` that lists every fault."""
    _, section = read_sections(path)
    faults: list[str] = []
    tenants = {name: _tenant(name, entry, faults) for name, entry in section.items()}
    if faults:
        raise ConfigError("\n".join(f"api_keys: {fault}" for fault in faults))
    return tenants


def _tenant(name: str, entry: Any, faults: list[str]) -> Tenant:
    where = f"tenants.{name}"
    entry = {} if entry is None else entry
    if not isinstance(entry, dict):
        faults.append(f"{where} must be a mapping")
        return Tenant()
    known = {*_LIMITS, "weight", "models"}
    faults += [
        f"{where}.{key} is unknown; there are {', '.join(sorted(known))}"
        for key in sorted(set(map(str, entry)) - known)
    ]
    weight = _number(entry, "weight", where, faults) or 1.0
    if weight > MAX_WEIGHT:
        faults.append(f"{where}.weight: {weight:g} is above {MAX_WEIGHT:g}")
    models = entry.get("models") or {}
    if not isinstance(models, dict):
        faults.append(f"{where}.models must be a mapping of model to limits")
        models = {}
    return Tenant(
        weight,
        _limits(entry, where, faults),
        {str(model): _model_limits(str(model), limits, where, faults) for model, limits in models.items()},
    )


def _model_limits(model: str, entry: Any, where: str, faults: list[str]) -> Limits:
    where = f"{where}.models.{model}"
    try:
        records.check_name(model)
    except InvalidArgument as error:
        faults.append(f"{where}: {error.message}")
    if not isinstance(entry, dict):
        faults.append(f"{where} must be a mapping")
        return Limits()
    faults += [
        f"{where}.{key} is unknown; there are {', '.join(sorted(_LIMITS))}"
        for key in sorted(set(map(str, entry)) - _LIMITS)
    ]
    return _limits(entry, where, faults)


def _limits(entry: Mapping[str, Any], where: str, faults: list[str]) -> Limits:
    found: dict[str, Rate] = {}
    burst_s = _number(entry, "burst_s", where, faults)
    for name, (kind, seconds, usual_s) in _RATES.items():
        amount = _number(entry, name, where, faults)
        if amount is None:
            continue
        if kind in found:
            faults.append(f"{where}: give {found[kind].name} or {name}, not both")
        per_s = amount / seconds
        found[kind] = Rate(name, per_s, max(1.0, per_s * (burst_s or usual_s)))
    concurrent = entry.get("concurrent")
    if concurrent is not None and (type(concurrent) is not int or concurrent < 1):
        faults.append(f"{where}.concurrent must be a whole number of 1 or more, not {str(concurrent)[:20]!r}")
        concurrent = None
    return Limits(found.get("requests"), found.get("tokens"), concurrent)


def _number(entry: Mapping[str, Any], name: str, where: str, faults: list[str]) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        faults.append(f"{where}.{name} must be a number above 0, not {str(value)[:20]!r}")
        return None
    return float(value)
