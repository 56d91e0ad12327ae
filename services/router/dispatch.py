"""Sends work along a route, and along another one when it breaks. A generation's own story is in `session_run.py`."""

import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence

import grpc.aio
from opentelemetry.trace import Span

from stagemesh import errors, tracing
from stagemesh.v1 import registry_pb2, stage_pb2

from .ask import ask_of
from .attempts import ROUTE_FAULTS, Attempts, Route, RouteBroke, deadline_unix_ms, remaining
from .channels import Channels
from .context import RequestContext
from .forward_stream import ForwardStream, NotSpokenError
from .loads import Loads
from .routing import Routing, blame
from .session_run import Opening, SessionRun
from .telemetry import Telemetry
from .waking import Waking

STREAM_BYTES = 2**18
"""Larger micro-batches make a call of their own: they would hold up the small ones on the shared stream."""

__all__ = ["Dispatch", "Route", "deadline_unix_ms", "remaining"]


class Dispatch:
    """Chooses routes and talks to their heads; keeps the in-flight counts and takes the loads that come back."""

    def __init__(
        self,
        routing: Routing,
        loads: Loads,
        channels: Channels,
        telemetry: Telemetry,
        rng: random.Random,
        waking: Waking | None = None,
    ) -> None:
        self._attempts = Attempts(routing, loads, channels, telemetry, rng, waking)
        self._loads = loads
        self._channels = channels
        self._telemetry = telemetry

    def generate(
        self,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        opening: Opening,
        prompt: Sequence[int] = (),
        new_tokens: int = 0,
    ) -> AsyncGenerator[tuple[Route, stage_pb2.SessionEvent], None]:
        """Events of one session with the route they came by, the last one with a finish reason.

        Args:
            spec: of the model.
            ctx: of the request.
            span: that the session's spans belong to.
            opening: the session for a route, given the tokens that it has so far and its epoch.
            prompt: its token ids, for policies that look at them.
            new_tokens: that it asks for at most, for the same.

        Raises:
            InvalidArgument: a header that bears on the route makes no sense.
            Unavailable: there is no route at all, or none got the session any further.
            DeadlineExceeded: the deadline passed while the session waited for one.
        """
        return SessionRun(self._attempts, spec, ctx, span, opening, ask_of(ctx, prompt, new_tokens)).events()

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
        avoid, ask = set(avoid), ask_of(ctx)
        attempt = 0
        while True:
            attempt += 1
            await self._attempts.awake(spec, ctx, span)
            route = self._attempts.choose(spec, ctx, span, avoid, ask)
            try:
                return route, await self._forward(
                    request(route), route, spec, ctx, span, nbytes, first=attempt == 1
                )
            except RouteBroke as broke:
                avoid |= broke.avoid
                if not self._attempts.may_retry(spec, ctx, route, broke, avoid, attempt):
                    raise broke.error from None
                self._attempts.retrying(spec, broke)

    def elsewhere(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, route: Route, error: errors.InternalError
    ) -> set[str]:
        """Replicas to keep away from when `error`, which came along `route`, is tried again; empty: there is no other."""
        broke = RouteBroke(error, blame(route, error.message, "")[1])
        if not self._attempts.may_retry(spec, ctx, route, broke, broke.avoid, 1):
            return set()
        self._attempts.retrying(spec, broke)
        return broke.avoid

    def replicas(self, spec: registry_pb2.ModelSpec) -> int:
        """How many routes can run beside one another: ready replicas of the stage that has the fewest, at least 1."""
        return self._attempts.routing.replicas(spec)

    async def _forward(
        self,
        request: stage_pb2.ForwardRequest,
        route: Route,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        nbytes: int,
        *,
        first: bool,
    ) -> stage_pb2.ForwardResponse:
        address = route[0].address
        with self._attempts.in_flight_once_sent(spec, route) as running:

            def sent() -> None:
                if running.begin() and first:
                    self._attempts.begun(spec)

            stream = self._channels.forward(address)
            try:
                answer = None
                if nbytes <= STREAM_BYTES and stream.spoken:
                    try:
                        if tracing.enabled():
                            answer = await self._traced(stream, request, ctx, span, sent)
                        else:
                            answer = await stream.forward(request, remaining(ctx), sent)
                    except NotSpokenError:
                        pass  # it is called the old way
                if answer is None:
                    sent()
                    with self._telemetry.under(span):
                        call = self._channels.stage(address).Forward(request, timeout=remaining(ctx))
                    answer = await call
            except grpc.aio.AioRpcError as error:
                raise self._attempts.translated(route, spec, error) from None
            except ROUTE_FAULTS as error:
                raise self._attempts.broke(route, spec, error) from None
            self._loads.report(answer.loads, time.monotonic())
            self._attempts.ended(route)
            return answer

    async def _traced(
        self,
        stream: ForwardStream,
        request: stage_pb2.ForwardRequest,
        ctx: RequestContext,
        span: Span,
        sent: Callable[[], None],
    ) -> stage_pb2.ForwardResponse:
        """The answer to a message on the shared stream, with a span around it."""
        # Imported by routers that trace anyway.
        from stagemesh.grpc_tracing_channel import calling_message

        with calling_message("/stagemesh.v1.StageService/Forward", span) as traceparent:
            request.traceparent = traceparent
            return await stream.forward(request, remaining(ctx), sent)
