"""One generation on the mesh, from its first route to its last token, whatever breaks on the way.

1. A route is chosen and the session opened at its head; tokens come back on that call.
2. The head says that a replica behind it was lost: another one takes its place (`Reroute`), is built again by its
   neighbour, and the same call goes on. The others keep their state.
3. The head itself is lost: another head is told prompt and tokens, and goes on with the others, which hold theirs.
4. Neither works, because something more is missing: prompt and tokens are computed again on a whole new route.

Sampling is a pure function of seed and position, and steps of an older epoch are dropped by every stage, so the tokens
are those that an undisturbed session would have had.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import grpc.aio
from opentelemetry.trace import Span

from stagemesh import errors
from stagemesh.errors import from_code
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.v1 import registry_pb2, stage_pb2

from .attempts import ROUTE_FAULTS, Attempts, InFlight, Route, RouteBroke, remaining
from .context import RequestContext
from .policies import Ask

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S, LOOK_S = 0.05, 3.0, 0.05
"""Between attempts to go on with a session along the replicas that broke, and looks whether there is another one."""
HOPELESS_ATTEMPTS, HOPELESS_S = 8, 60.0
"""After so many routes that broke, and so many seconds, without a token in between a session is given up: the request
itself may be what breaks them."""
REROUTE_S = 10.0
"""What a head may take to answer that it goes on."""

Opening = Callable[[Route, list[int], int], stage_pb2.OpenSession]


class SessionRun:
    """See `Dispatch.generate`."""

    def __init__(
        self,
        attempts: Attempts,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        opening: Opening,
        ask: Ask,
    ) -> None:
        self._attempts = attempts
        self._spec = spec
        self._ctx = ctx
        self._span = span
        self._opening = opening
        self._ask = ask
        self._route: Route = []
        self._tokens: list[int] = []
        self._epoch = 0
        # Away from what broke since the last token.
        self._avoid: set[str] = set()
        self._attempt = 0
        self._progress = time.monotonic()
        self._faults = 0
        # The next route keeps what the replicas behind its head hold.
        self._held = False

    def __repr__(self) -> str:
        route = ",".join(hop.replica_id for hop in self._route)
        return f"SessionRun({route} epoch={self._epoch} tokens={len(self._tokens)} attempt={self._attempt})"

    async def events(self) -> AsyncGenerator[tuple[Route, stage_pb2.SessionEvent], None]:
        """Events of the session with the route they came by, the last one with a finish reason."""
        self._attempts.begun(self._spec)
        while True:
            try:
                await self._attempts.awake(self._spec, self._ctx, self._span)
                self._route = self._next_route()
            except errors.Unavailable:
                if not self._attempt or time.monotonic() > self._progress + HOPELESS_S:
                    raise
                await asyncio.sleep(min(LOOK_S, remaining(self._ctx)))
                continue
            self._attempt += 1
            try:
                async with aclosing(self._along()) as events:
                    async for event in events:
                        if event.tokens:
                            self._tokens.extend(token.id for token in event.tokens)
                            self._progressed()
                        yield self._route, event
                return
            except RouteBroke as broke:
                await self._after(broke)

    def _next_route(self) -> Route:
        route = self._attempts.choose(self._spec, self._ctx, self._span, self._avoid, self._ask)
        if self._held and len(route) == len(self._route):
            if route[0].replica_id == self._route[0].replica_id:
                self._held = False  # there is no other head: everything anew
            else:
                route[1:] = self._route[1:]
        return route

    def _progressed(self) -> None:
        """It got on: what broke before may be well again."""
        if self._attempt > 1 or self._avoid:
            self._attempt, self._avoid = 1, set()
        self._held = False
        self._progress = time.monotonic()

    async def _after(self, broke: RouteBroke) -> None:
        """Get ready for another route, or raise."""
        self._epoch += 1
        self._avoid |= broke.avoid
        head = self._route[0].replica_id
        # Held state is tried once; whoever else is lost shows then, and is replaced on that route.
        held, self._held = self._held, False
        full = isinstance(broke.error, errors.ResourceExhausted)
        if not self._tokens and self._attempts.may_retry(
            self._spec, self._ctx, self._route, broke, self._avoid, self._attempt
        ):
            self._attempts.retrying(self._spec, broke)
        elif (full and not self._tokens) or self._hopeless:
            raise broke.error from None
        else:
            self._held = bool(self._tokens) and broke.guilty == head and len(self._route) > 1 and not held
            self._moving(broke.error.message)
            await self._pause(self._route)

    @property
    def _hopeless(self) -> bool:
        return self._attempt >= HOPELESS_ATTEMPTS and time.monotonic() > self._progress + HOPELESS_S

    def _moving(self, why: str) -> None:
        log.warning("session.moved: %s", why)
        self._span.add_event("stagemesh.session.moved", {"stagemesh.reason": why})
        self._attempts.telemetry.recoveries.labels(self._spec.name).inc()

    async def _pause(self, route: Route) -> None:
        """Where there is no other replica yet, wait a little before those that broke are tried again."""
        longest = min(FIRST_PAUSE_S * 2 ** min(self._attempt, 10), LONGEST_PAUSE_S)
        until = time.monotonic() + longest * self._attempts.rng.uniform(0.5, 1.0)
        while time.monotonic() < until:
            if self._attempts.routing.has_other(self._spec, route, self._avoid):
                return
            await asyncio.sleep(min(LOOK_S, remaining(self._ctx)))

    async def _along(self) -> AsyncGenerator[stage_pb2.SessionEvent, None]:
        """The session on one route, whose replicas behind the head may be replaced meanwhile."""
        attempts, spec = self._attempts, self._spec
        opening = self._opening(self._route, self._tokens, self._epoch)
        opening.reroutable = True
        opening.held = self._held
        with attempts.in_flight(spec, self._route) as in_flight:
            in_flight.sent(self._route, len(opening.token_ids), self._ask)
            with attempts.telemetry.under(self._span):
                stage = attempts.channels.stage(self._route[0].address)
                call = stage.Generate(opening, timeout=remaining(self._ctx))
            try:
                async for event in call:
                    if event.tokens:
                        in_flight.through()
                    attempts.loads.report(event.loads, time.monotonic())
                    if event.reused_tokens:
                        attempts.telemetry.prefix_hits.labels(spec.name).inc(event.reused_tokens)
                    if any(spec.vocab_size and token.id >= spec.vocab_size for token in event.tokens):
                        raise errors.InternalError("a stage sent a token outside the vocabulary")
                    if event.tokens or event.finish_reason:
                        yield event
                    if event.finish_reason:
                        attempts.ended(self._route)
                        return
                    if event.HasField("lost"):
                        await self._replace(event.lost, opening.session, in_flight)
                ended = errors.Unavailable("it ended without a finish reason")
                raise attempts.broke(self._route, spec, ended)
            except grpc.aio.AioRpcError as error:
                # A fault of the mesh's own may be one replica's, or the request's: it is looked at from two sides.
                faults = (*ROUTE_FAULTS, errors.InternalError) if not self._faults else ROUTE_FAULTS
                self._faults += error.code() is grpc.StatusCode.INTERNAL
                raise attempts.translated(self._route, spec, error, faults=faults) from None
            finally:
                call.cancel()

    # ---- one replica of the route ----

    async def _replace(self, lost: stage_pb2.LostReplica, session: int, in_flight: InFlight) -> None:
        """Put another replica in the place of a lost one, and have the head go on.

        Raises:
            RouteBroke: it cannot be done, or not any more.
        """
        error = from_code(lost.code, lost.message)
        if not 0 < lost.stage < len(self._route) or self._route[lost.stage].replica_id != lost.replica_id:
            raise RouteBroke(errors.Unavailable("the head lost a replica that is not on the route"), set())
        self._attempt += 1
        if self._hopeless:
            raise RouteBroke(error, {lost.replica_id})
        if not isinstance(error, errors.FailedPrecondition):  # it is well, and only has to be told again
            self._avoid.add(lost.replica_id)
            if not isinstance(error, errors.ResourceExhausted):
                self._attempts.loads.failed(lost.replica_id, time.monotonic())
        self._moving(f"stage {lost.stage} lost replica {lost.replica_id}")
        before = self._route[lost.stage]
        after = await self._another(before)
        self._epoch += 1
        self._route = [*self._route[: lost.stage], after, *self._route[lost.stage + 1 :]]
        in_flight.replaced(before, after)
        request = stage_pb2.RerouteRequest(
            session=session, epoch=self._epoch, route=self._route, stage=lost.stage
        )
        head = self._attempts.channels.stage(self._route[0].address)
        try:
            await head.Reroute(request, timeout=min(remaining(self._ctx), REROUTE_S))
        except grpc.aio.AioRpcError as refused:
            translated = from_rpc_error(refused)
            if not isinstance(
                translated, errors.NotFound
            ):  # else it has ended meanwhile, as the call will tell
                raise self._attempts.broke(self._route, self._spec, translated) from None

    async def _another(self, before: stage_pb2.RouteHop) -> stage_pb2.RouteHop:
        """A replica for the stage of `before`: another one, or after a pause the same when there is none."""
        if before.replica_id in self._avoid:
            await self._pause([before])
        while True:
            try:
                return self._attempts.routing.choose_stage(
                    self._spec,
                    before.stage,
                    time.monotonic(),
                    self._attempts.rng,
                    override=self._ctx.policy_override,
                    avoid=self._avoid,
                    ask=self._ask,
                )
            except errors.Unavailable:
                await asyncio.sleep(min(LOOK_S, remaining(self._ctx)))
