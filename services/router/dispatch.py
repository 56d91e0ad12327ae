"""Sends work along a route, and along another one when it breaks.

A session that has begun is not lost with its route: what it has so far (prompt and tokens) is computed again
on another one, and goes on. Sampling is a pure function of seed and position, so the tokens are those it would have had.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing

import grpc.aio
from opentelemetry.trace import Span

from stagemesh import errors, tracing
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.v1 import registry_pb2, stage_pb2

from .channels import Channels
from .context import RequestContext
from .forward_stream import ForwardStream, NotSpokenError
from .loads import Loads
from .routing import Routing, blame
from .telemetry import Telemetry

log = logging.getLogger(__name__)
Route = list[stage_pb2.RouteHop]
FAILED_REPLICA = "stagemesh-failed-replica"
FIRST_PAUSE_S, LONGEST_PAUSE_S, LOOK_S = 0.05, 3.0, 0.05
"""Between attempts to go on with a session along the replicas that broke, and looks whether there is another one."""
HOPELESS_ATTEMPTS, HOPELESS_S = 8, 60.0
"""After so many routes that broke, and so many seconds, without a token in between a session is given up: the request
itself may be what breaks them."""
STREAM_BYTES = 2**18
"""Larger micro-batches make a call of their own: they would hold up the small ones on the shared stream."""

# What a stage may answer that says something about the route, not about the request.
_ROUTE_FAULTS = (
    errors.Unavailable,
    errors.Cancelled,
    errors.NotFound,
    errors.FailedPrecondition,
    errors.AlreadyExists,
    errors.ResourceExhausted,
)


class RouteBroke(Exception):
    """The route failed, not the request; `avoid` holds the replicas that another attempt keeps away from."""

    def __init__(self, error: errors.StagemeshError, avoid: set[str]) -> None:
        super().__init__(error.message)
        self.error = error
        self.avoid = avoid


class Dispatch:
    """Chooses routes and talks to their heads; keeps the in-flight counts and takes the loads that come back."""

    def __init__(
        self, routing: Routing, loads: Loads, channels: Channels, telemetry: Telemetry, rng: random.Random
    ) -> None:
        self._routing = routing
        self._loads = loads
        self._channels = channels
        self._telemetry = telemetry
        self._rng = rng

    async def generate(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        opening: Callable[[Route, list[int], int], stage_pb2.OpenSession],
    ) -> AsyncGenerator[tuple[Route, stage_pb2.SessionEvent], None]:
        """Events of one session with the route they came by, the last one with a finish reason.

        Args:
            spec: of the model.
            ctx: of the request.
            span: that the session's spans belong to.
            opening: the session for a route, given the tokens that it has so far and its epoch.

        Raises:
            Unavailable: there is no route at all, or none got the session any further.
            DeadlineExceeded: the deadline passed while the session waited for one.
        """
        avoid: set[str] = set()
        tokens: list[int] = []
        attempt, epoch, progress = 0, 0, time.monotonic()
        while True:
            begun = len(tokens)
            try:
                route = self._choose(spec, ctx, span, avoid)
            except errors.Unavailable:
                if not attempt or time.monotonic() > progress + HOPELESS_S:
                    raise
                await asyncio.sleep(min(LOOK_S, remaining(ctx)))
                continue
            attempt += 1
            try:
                async with aclosing(
                    self._session(opening(route, tokens, epoch), route, spec, ctx, span)
                ) as events:
                    async for event in events:
                        tokens.extend(token.id for token in event.tokens)
                        yield route, event
                return
            except RouteBroke as broke:
                epoch += 1
                if len(tokens) > begun:  # it got on: what broke before may be well again
                    attempt, avoid, progress = 1, set(), time.monotonic()
                avoid |= broke.avoid
                full = isinstance(broke.error, errors.ResourceExhausted)
                if not tokens and self._may_retry(spec, ctx, route, broke, avoid, attempt):
                    self._retrying(spec, broke)
                elif (full and not tokens) or self._hopeless(attempt, progress):
                    raise broke.error from None
                else:
                    await self._recovering(spec, ctx, span, route, broke, avoid, attempt)

    async def _recovering(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        route: Route,
        broke: RouteBroke,
        avoid: set[str],
        attempt: int,
    ) -> None:
        """Say that a session moves; where there is no other replica yet, wait a little before it is tried again."""
        log.warning("session.moved: %s", broke.error.message)
        span.add_event("stagemesh.session.moved", {"stagemesh.reason": broke.error.message})
        self._telemetry.recoveries.labels(spec.name).inc()
        pause = min(FIRST_PAUSE_S * 2 ** min(attempt, 10), LONGEST_PAUSE_S) * self._rng.uniform(0.5, 1.0)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if self._routing.has_other(spec, route, avoid):
                return
            await asyncio.sleep(min(LOOK_S, remaining(ctx)))

    @staticmethod
    def _hopeless(attempt: int, progress: float) -> bool:
        return attempt >= HOPELESS_ATTEMPTS and time.monotonic() > progress + HOPELESS_S

    async def forward(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        request: Callable[[Route], stage_pb2.ForwardRequest],
        nbytes: int,
        avoid: Collection[str] = (),
    ) -> tuple[Route, stage_pb2.ForwardResponse]:
        """One stateless micro-batch; tried on other routes when the first breaks.

        `nbytes` is the size of the larger of request and answer; `avoid` holds replicas to keep away from.
        """
        avoid = set(avoid)
        attempt = 0
        while True:
            attempt += 1
            route = self._choose(spec, ctx, span, avoid)
            try:
                return route, await self._forward(request(route), route, spec, ctx, span, nbytes)
            except RouteBroke as broke:
                avoid |= broke.avoid
                if not self._may_retry(spec, ctx, route, broke, avoid, attempt):
                    raise broke.error from None
                self._retrying(spec, broke)

    def elsewhere(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, route: Route, error: errors.InternalError
    ) -> set[str]:
        """Replicas to keep away from when `error`, which came along `route`, is tried again; empty: there is no other."""
        broke = RouteBroke(error, blame(route, error.message, "")[1])
        if not self._may_retry(spec, ctx, route, broke, broke.avoid, 1):
            return set()
        self._retrying(spec, broke)
        return broke.avoid

    def replicas(self, spec: registry_pb2.ModelSpec) -> int:
        """How many routes can run beside one another: ready replicas of the stage that has the fewest, at least 1."""
        return self._routing.replicas(spec)

    def _choose(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, span: Span, avoid: set[str]
    ) -> Route:
        with self._telemetry.span("router.route", span) as routing_span:
            route = self._routing.choose(
                spec, time.monotonic(), self._rng, override=ctx.policy_override, avoid=avoid
            )
            for hop in route if routing_span.is_recording() else ():
                routing_span.set_attribute(f"stagemesh.stage.{hop.stage}", hop.replica_id)
        return route

    def _may_retry(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        route: Route,
        broke: RouteBroke,
        avoid: set[str],
        attempt: int,
    ) -> bool:
        # One dead node may have held a replica of every stage, and each is found out by a route of its own.
        # A full replica is no fault: trying them all would only add to the load.
        attempts = 2 if isinstance(broke.error, errors.ResourceExhausted) else len(route) + 1
        return (
            attempt < attempts
            and ctx.deadline > time.monotonic()
            and self._routing.has_other(spec, route, avoid)
        )

    def _retrying(self, spec: registry_pb2.ModelSpec, broke: RouteBroke) -> None:
        log.warning("route.broke: %s; trying another", broke.error.message)
        self._telemetry.retries.labels(spec.name).inc()

    def _in_flight(self, spec: registry_pb2.ModelSpec, route: Route) -> "_InFlight":
        replicas = [hop.replica_id for hop in route]
        for stage, replica in enumerate(replicas):
            self._telemetry.route_sessions.labels(spec.name, str(stage), replica).inc()
        return _InFlight(self._loads, replicas)

    async def _session(
        self,
        opening: stage_pb2.OpenSession,
        route: Route,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
    ) -> AsyncGenerator[stage_pb2.SessionEvent, None]:
        with self._in_flight(spec, route):
            with self._telemetry.under(span):
                call = self._channels.stage(route[0].address).Generate(opening, timeout=remaining(ctx))
            try:
                async for event in call:
                    self._loads.report(event.loads, time.monotonic())
                    if any(spec.vocab_size and token.id >= spec.vocab_size for token in event.tokens):
                        raise errors.InternalError("a stage sent a token outside the vocabulary")
                    if event.tokens or event.finish_reason:
                        yield event
                    if event.finish_reason:
                        return
                raise self._broke(route, spec, errors.Unavailable("it ended without a finish reason"), "")
            except grpc.aio.AioRpcError as error:
                raise self._translated(route, spec, error) from None
            finally:
                call.cancel()

    async def _forward(
        self,
        request: stage_pb2.ForwardRequest,
        route: Route,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        nbytes: int,
    ) -> stage_pb2.ForwardResponse:
        address = route[0].address
        with self._in_flight(spec, route):
            stream = self._channels.forward(address)
            try:
                answer = None
                if nbytes <= STREAM_BYTES and stream.spoken:
                    answer = await self._streamed(stream, request, ctx, span)
                if answer is None:
                    with self._telemetry.under(span):
                        call = self._channels.stage(address).Forward(request, timeout=remaining(ctx))
                    answer = await call
            except grpc.aio.AioRpcError as error:
                raise self._translated(route, spec, error) from None
            except _ROUTE_FAULTS as error:
                raise self._broke(route, spec, error, "") from None
            self._loads.report(answer.loads, time.monotonic())
            return answer

    async def _streamed(
        self, stream: ForwardStream, request: stage_pb2.ForwardRequest, ctx: RequestContext, span: Span
    ) -> stage_pb2.ForwardResponse | None:
        """The answer to a message on the shared stream; None when the head does not know of such streams."""
        try:
            if not tracing.enabled():
                return await stream.forward(request, remaining(ctx))
            # Imported by routers that trace anyway.
            from stagemesh.grpc_tracing_channel import calling_message

            with calling_message("/stagemesh.v1.StageService/Forward", span) as traceparent:
                request.traceparent = traceparent
                return await stream.forward(request, remaining(ctx))
        except NotSpokenError:
            return None

    def _translated(
        self, route: Route, spec: registry_pb2.ModelSpec, error: grpc.aio.AioRpcError
    ) -> Exception:
        translated = from_rpc_error(error)
        if not isinstance(translated, _ROUTE_FAULTS):
            return translated
        named = dict(error.trailing_metadata() or ())
        return self._broke(route, spec, translated, str(named.get(FAILED_REPLICA, "")))

    def _broke(
        self, route: Route, spec: registry_pb2.ModelSpec, error: errors.StagemeshError, named: str
    ) -> RouteBroke:
        guilty, avoid = blame(route, error.message, named)
        if isinstance(error, errors.ResourceExhausted):
            return RouteBroke(error, avoid)
        if guilty:
            self._loads.failed(guilty, time.monotonic())
        where = f"at replica {guilty}" if guilty else "at one of its replicas"
        message = f"the route of model {spec.name!r} broke {where}: {first_line(error.message)}"
        return RouteBroke(errors.Unavailable(message, retry_after_s=1.0), avoid)


class _InFlight:
    """Counts replicas as busy while its body runs."""

    __slots__ = ("_loads", "_replicas")

    def __init__(self, loads: Loads, replicas: list[str]) -> None:
        self._loads = loads
        self._replicas = replicas

    def __enter__(self) -> None:
        self._loads.begin(self._replicas)

    def __exit__(self, *_: object) -> None:
        self._loads.end(self._replicas)


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
