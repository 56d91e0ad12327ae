"""What every attempt to run something along a route has in common: the route, the counts, and what its failure means."""

import logging
import random
import time

import grpc.aio
from opentelemetry.trace import Span

from stagemesh import errors, tracing
from stagemesh.grpc_errors import FAILED_REPLICA, from_rpc_error
from stagemesh.v1 import registry_pb2, stage_pb2

from .admission.retry_budget import RetryBudget
from .channels import Channels
from .context import RequestContext
from .loads import Loads
from .policies import Ask
from .routing import Routing, blame
from .telemetry import Telemetry
from .waking import Waking

log = logging.getLogger(__name__)
Route = list[stage_pb2.RouteHop]
MAX_BUDGETS = 4096
"""Models' retry budgets kept; models come and go."""

# What a stage may answer that says something about the route, not about the request.
ROUTE_FAULTS = (
    errors.Unavailable,
    errors.Cancelled,
    errors.NotFound,
    errors.FailedPrecondition,
    errors.AlreadyExists,
    errors.ResourceExhausted,
)


class RouteBroke(Exception):
    """The route failed, not the request; `guilty` is the replica that did, or empty, and another attempt avoids `avoid`."""

    def __init__(self, error: errors.StagemeshError, avoid: set[str], guilty: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.avoid = avoid
        self.guilty = guilty


class Attempts:
    """Chooses routes, counts what runs on them, and takes the loads that come back."""

    def __init__(
        self,
        routing: Routing,
        loads: Loads,
        channels: Channels,
        telemetry: Telemetry,
        rng: random.Random,
        waking: Waking | None = None,
    ) -> None:
        self.routing = routing
        self.loads = loads
        self.channels = channels
        self.telemetry = telemetry
        self.rng = rng
        self._waking = waking
        self._budgets: dict[str, RetryBudget] = {}

    async def awake(self, spec: registry_pb2.ModelSpec, ctx: RequestContext, span: Span) -> None:
        """Return when the model has a route, if it slept; see `Waking.hold` for what it raises."""
        if self._waking is not None and self._waking.needed(spec):
            await self._waking.hold(spec, ctx.deadline, span)

    def choose(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, span: Span, avoid: set[str], ask: Ask
    ) -> Route:
        """A route; see `Routing.choose` for what it raises."""
        if tracing.enabled():
            with self.telemetry.span("router.route", span) as routing_span:
                route = self._choose(spec, ctx, avoid, ask)
                for hop in route:
                    routing_span.set_attribute(f"stagemesh.stage.{hop.stage}", hop.replica_id)
            return route
        return self._choose(spec, ctx, avoid, ask)

    def _choose(self, spec: registry_pb2.ModelSpec, ctx: RequestContext, avoid: set[str], ask: Ask) -> Route:
        return self.routing.choose(
            spec, time.monotonic(), self.rng, override=ctx.policy_override, avoid=avoid, ask=ask
        )

    def may_retry(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        route: Route,
        broke: RouteBroke,
        avoid: set[str],
        attempt: int,
    ) -> bool:
        """Whether a request that has given nothing yet is tried along another route."""
        # One dead node may have held a replica of every stage, and each is found out by a route of its own.
        # A full replica is no fault: trying them all would only add to the load.
        attempts = 2 if isinstance(broke.error, errors.ResourceExhausted) else len(route) + 1
        now = time.monotonic()
        if not (attempt < attempts and ctx.deadline > now and self.routing.has_other(spec, route, avoid)):
            return False
        if self._budget(spec, now).may_retry(now):
            return True
        self.telemetry.retries_denied.labels(spec.name).inc()
        return False

    def begun(self, spec: registry_pb2.ModelSpec) -> None:
        """A request begins, and brings its share of a retry."""
        now = time.monotonic()
        self._budget(spec, now).request(now)

    def ended(self, route: Route) -> None:
        """It came to its end along this route: its replicas are well."""
        self.loads.succeeded([hop.replica_id for hop in route], time.monotonic())

    def _budget(self, spec: registry_pb2.ModelSpec, now: float) -> RetryBudget:
        budget = self._budgets.get(spec.name)
        if budget is None:
            if len(self._budgets) >= MAX_BUDGETS:
                self._budgets.clear()
            budget = self._budgets[spec.name] = RetryBudget(now)
        return budget

    def retrying(self, spec: registry_pb2.ModelSpec, broke: RouteBroke) -> None:
        """Say and count it."""
        log.warning("route.broke: %s; trying another", broke.error.message)
        self.telemetry.retries.labels(spec.name).inc()

    def in_flight(self, spec: registry_pb2.ModelSpec, route: Route) -> "InFlight":
        """Counts its replicas as busy while its body runs, from now on."""
        running = self.in_flight_once_sent(spec, route)
        running.begin()
        return running

    def in_flight_once_sent(self, spec: registry_pb2.ModelSpec, route: Route) -> "InFlight":
        """The same from its `begin` on, which is called when something is on its way to the route."""
        return InFlight(self, spec.name, route)

    def translated(
        self,
        route: Route,
        spec: registry_pb2.ModelSpec,
        error: grpc.aio.AioRpcError,
        *,
        faults: tuple[type[errors.StagemeshError], ...] = ROUTE_FAULTS,
    ) -> Exception:
        """The request's own error, or `RouteBroke` when it is one of `faults`."""
        translated = from_rpc_error(error)
        translated.culprit = str(dict(error.trailing_metadata() or ()).get(FAILED_REPLICA, ""))
        if isinstance(translated, faults):
            return self.broke(route, spec, translated)
        if isinstance(translated, errors.InternalError) and translated.culprit:
            self.loads.failed(translated.culprit, time.monotonic())
        return translated

    def broke(self, route: Route, spec: registry_pb2.ModelSpec, error: errors.StagemeshError) -> RouteBroke:
        """What became of a route that answered with `error`, by the fault of its culprit or whoever it tells of."""
        if isinstance(error, errors.FailedPrecondition):
            return RouteBroke(errors.Unavailable(first_line(error.message), retry_after_s=1.0), set())
        guilty, avoid = blame(route, error.message, error.culprit)
        if isinstance(error, errors.ResourceExhausted):
            return RouteBroke(error, avoid)
        if guilty:
            self.loads.failed(guilty, time.monotonic())
        where = f"at replica {guilty}" if guilty else "at one of its replicas"
        message = f"the route of model {spec.name!r} broke {where}: {first_line(error.message)}"
        return RouteBroke(errors.Unavailable(message, retry_after_s=1.0), avoid, guilty)


class InFlight:
    """Counts replicas as busy while its body runs; one of them may be replaced meanwhile."""

    __slots__ = ("_attempts", "_model", "_prompt", "_replicas", "_route")

    def __init__(self, attempts: Attempts, model: str, route: Route) -> None:
        self._attempts = attempts
        self._model = model
        # Until they are counted.
        self._route: Route | None = route
        self._replicas: list[str] = []
        # Tokens of its prompt that these have to compute before its first token comes.
        self._prompt = 0

    def __enter__(self) -> "InFlight":
        return self

    def __exit__(self, *_: object) -> None:
        if self._prompt:
            self.through()
        self._attempts.loads.end(self._replicas)

    def begin(self) -> bool:
        """Count its replicas; False if that was done before."""
        route, self._route = self._route, None
        if route is None:
            return False
        self._add(route)
        return True

    def _add(self, hops: Route) -> None:
        added = []
        for hop in hops:
            name = hop.replica_id
            added.append(name)
            self._attempts.telemetry.route_sessions.count(self._model, str(hop.stage), name)
        self._replicas += added
        self._attempts.loads.begin(added)

    def sent(self, route: Route, tokens: int, ask: Ask) -> None:
        """A sequence of so many tokens goes to the route, which may have the beginning of it."""
        self._prompt = max(tokens - self._attempts.routing.spared(route, ask), 1)
        self._attempts.loads.sent(self._replicas, self._prompt)

    def through(self) -> None:
        """Its first token came: nobody waits for its prompt any more."""
        if self._prompt:
            self._attempts.loads.through(self._replicas, self._prompt)
            self._prompt = 0

    def replaced(self, before: stage_pb2.RouteHop, after: stage_pb2.RouteHop) -> None:
        """One replica takes another one's place."""
        if self._prompt:
            self._attempts.loads.through([before.replica_id], self._prompt)
            self._attempts.loads.sent([after.replica_id], self._prompt)
        self._replicas.remove(before.replica_id)
        self._attempts.loads.end([before.replica_id])
        self._add([after])


def remaining(ctx: RequestContext) -> float:
    """Seconds until the deadline; raises `DeadlineExceeded` when it has passed."""
    left = ctx.deadline - time.monotonic()
    if left <= 0:
        raise errors.DeadlineExceeded("the deadline passed before the request was dispatched")
    return left


def deadline_unix_ms(ctx: RequestContext) -> int:
    """The deadline as stages are told it."""
    return int((time.time() + ctx.deadline - time.monotonic()) * 1000)


def first_line(message: str) -> str:
    """A peer's message, cut to one short line."""
    return (message.splitlines() or ["no reason given"])[0][:200]
