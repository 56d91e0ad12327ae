"""The head: it owns its sessions' batching, and turns results of the last stage into events for the router."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import torch
from opentelemetry import context as otel_context

from stagemesh.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    StagemeshError,
    from_code,
)
from stagemesh.prefix import BLOCK, digests
from stagemesh.tensor import TensorView
from stagemesh.tracing import inject
from stagemesh.v1.stage_pb2 import (
    STEP_KIND_DECODE,
    STEP_KIND_PREFILL,
    ForwardRequest,
    ForwardResponse,
    HopRecord,
    LostReplica,
    OpenSession,
    RerouteRequest,
    SessionError,
    SessionEvent,
    Step,
    StepOpen,
    StepResult,
)

from . import metrics
from .depth import Depth
from .head_session import HeadSession
from .history import needs_history, tell_history
from .opening import check_opening
from .pace import Pace
from .partition.interface import Batch
from .partition.ragged import Segment
from .passes import Work, segments_of
from .recovery import resumed
from .replica import Replica
from .schedule import Flight, PlannedStep, Schedule
from .session import ReplicaSession, from_session_error
from .stateless import Stateless

log = logging.getLogger(__name__)

# Passes at the compute thread: one that runs, and one that it finds when it is done.
_QUEUED = 2
# Epochs here for each of the router's: a beginning that a stage no longer had is repeated in the next one, from what
# that stage still has, and then from position 0.
_EPOCHS = 4


class Head:
    """Sessions of the routes that begin at `replica`."""

    def __init__(self, replica: Replica, stages: int, chunk_tokens: int = 512) -> None:
        self._replica = replica
        self._sessions: dict[int, HeadSession] = {}
        self._stateless = Stateless(replica)
        self._schedule = Schedule(stages, chunk_tokens)
        self._chunk_tokens = chunk_tokens
        self._depth = Depth(stages)
        self._tokens = metrics.TOKENS.labels(replica.model_name)
        self._reused = metrics.REUSED_TOKENS.labels(replica.model_name)
        self._pace = Pace()
        self._wake = asyncio.Event()
        # Passes that are under way here, and how many of them are not computed yet.
        self._passes: set[asyncio.Task[None]] = set()
        self._computing = 0
        replica.on_result = self._on_result
        replica.prompt_tokens = lambda: self._schedule.prompt_tokens
        self._waits = replica.step_waits
        replica.links.on_error = self._on_error
        self._pump = asyncio.create_task(self._run(), name=f"head-{replica.replica_id}")

    @property
    def replica_id(self) -> str:
        """Whose head it is."""
        return self._replica.replica_id

    def __repr__(self) -> str:
        return f"<Head {self._replica.replica_id} sessions={len(self._sessions)} {self._schedule!r} {self._pace!r}>"

    async def close(self) -> None:
        """Stop making passes."""
        tasks = [self._pump, *self._passes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- generation ----

    async def generate(self, request: OpenSession) -> AsyncGenerator[SessionEvent, None]:
        """Run one generation; the last event has the finish reason. Leaving early frees the session everywhere.

        Raises:
            InvalidArgument: a field that the model or the route does not allow.
            ResourceExhausted: no KV memory.
            Unavailable: a stage of the route was lost.
            DeadlineExceeded: the deadline passed.
        """
        check_opening(request, self._replica)
        open_ = StepOpen(
            route=request.route,
            sampling=request.sampling,
            max_total_tokens=request.prompt_tokens + request.max_tokens,
            deadline_unix_ms=request.deadline_unix_ms,
            traceparent=dict(inject()).get("traceparent", ""),
            hold=request.reroutable,
            resume=request.held,
        )
        tell_history(open_, request.token_ids, request.prompt_tokens)
        if self._replica.model.ragged:
            # Of what was generated before a recovery nothing is shared.
            prefix = digests(request.token_ids[: request.prompt_tokens])
            open_.prefix_digests = b"".join(prefix)
            open_.reused_tokens = self._replica.pool.reusable(prefix, len(request.token_ids))
        opening = Step(
            session=request.session,
            epoch=_EPOCHS * request.epoch,
            kind=STEP_KIND_PREFILL,
            open=open_,
        )
        own = self._replica.open_session(opening, 0, otel_context.get_current())
        session = HeadSession(
            own,
            request.max_tokens,
            frozenset(request.stop_token_ids),
            asyncio.Queue(request.max_tokens + 2),
            token_ids=list(request.token_ids),
            prompt_tokens=request.prompt_tokens,
            generated=len(request.token_ids) - request.prompt_tokens,
        )
        if before := self._sessions.get(request.session):
            self._forget(before)  # its call has ended, and the end has not come through yet
        self._sessions[request.session] = session
        try:
            if request.held:
                await self._build(session)
            self._begin(session)
            finished, first = False, True
            while not finished:
                results = [await session.next_event()]
                while not session.events.empty():
                    results.append(session.waiting_event())
                event = SessionEvent(
                    tokens=[result.token for result in results if isinstance(result, StepResult)],
                    lost=next((result for result in results if isinstance(result, LostReplica)), None),
                )
                if not event.tokens:
                    yield event
                    continue
                event.loads.extend(session.timings.loads.values())
                finish = session.finish_of(event)
                if finish:
                    event.finish_reason = finish
                    finished = True
                if first:
                    event.reused_tokens = session.own.open.reused_tokens
                    if not request.held:
                        self._reused.inc(event.reused_tokens)
                if first or finished:
                    event.timings.extend(session.timings.stages())
                    first = False
                yield event
        finally:
            self._forget(session)
            if session.leaving:
                self._replica.end_session(session.own)
            else:
                self._replica.close_session(session.own)

    async def forward(self, request: ForwardRequest) -> ForwardResponse:
        """See `Stateless.forward`."""
        return await self._stateless.forward(request)

    # ---- what comes back ----

    def _on_result(self, result: StepResult, tensor: TensorView | None, hops: list[HopRecord]) -> None:
        session = self._sessions.get(result.session)
        if session is None:
            return self._stateless.on_result(result, tensor, hops)
        if result.epoch != session.own.epoch:
            self._replica.recovery.fence()
            return
        session.timings.add(hops)
        self._wake.set()
        if result.prefilled:
            if (
                session.chunks
            ):  # else an older replica was built again, and answered as if it had been asked to
                session.acknowledged = session.chunks.popleft()
            self._measure(self._schedule.answered(result.session), hops)
            return
        session.acknowledged = len(session.token_ids)
        session.chunks.clear()
        session.token_ids.append(result.token.id)
        session.generated += 1
        self._tokens.inc()
        session.events.put_nowait(result)
        if result.token.id in session.stop_ids or session.generated >= session.max_tokens:
            self._schedule.remove(result.session)
        else:
            self._measure(self._schedule.token(result.session, result.token.id), hops)
            self._depth.token(time.monotonic(), self._schedule.decoding)

    def _measure(self, flight: Flight | None, hops: list[HopRecord]) -> None:
        """A whole part of a pass is through: what it took tells how large the next chunks may be."""
        if flight is not None and hops:
            if self._schedule.prompts:
                self._depth.disturbed()
            slowest = max(hop.compute_us for hop in hops) / 1000
            self._pace.passed(slowest, flight.decodes, flight.prompt_tokens)

    def _on_error(self, error: SessionError) -> None:
        session = self._sessions.get(error.session)
        if session is None:
            self._stateless.on_error(error)
        elif error.epoch == session.own.epoch and not session.events.full():
            if error.HasField("lost") and session.own.holds:
                self._on_lost(session, error)
                return
            self._schedule.remove(error.session)
            self._wake.set()
            failure = from_session_error(error, session.own.open)
            if error.prefix_missing and session.own.open.reused_tokens:
                try:
                    return self._begin_again(session, error.prefix_tokens)
                except StagemeshError as refused:
                    failure = refused
            session.events.put_nowait(failure)

    def _begin(self, session: HeadSession) -> None:
        """Schedule a session's prompt, but for what its KV holds already."""
        own = session.own
        lane = own.next_hop.replica_id if own.next_hop is not None else ""
        if not own.open.resume:
            session.acknowledged = own.open.reused_tokens
        session.chunks.clear()
        if own.repeats is not None:
            self._schedule.wait(own.session, lane, own.repeats + 1)
            self._replica.recovery.repeat_first(own)
            return
        self._schedule.add(own.session, session.token_ids[session.acknowledged :], lane, session.acknowledged)
        self._wake.set()

    def _begin_again(self, session: HeadSession, kept: int) -> None:
        """A stage had only `kept` positions of the prompt's beginning: compute what is beyond, or, told so again, all of it."""
        metrics.PREFIXES_MISSED.labels(self._replica.model_name).inc()
        own = session.own
        opening = Step(session=own.session, epoch=own.epoch + 1, kind=STEP_KIND_PREFILL)
        opening.open.CopyFrom(own.open)
        first = own.epoch % _EPOCHS == 0 and not kept % BLOCK
        opening.open.reused_tokens = min(kept, own.open.reused_tokens - BLOCK) if first else 0
        opening.open.resume = False
        session.own = self._replica.open_session(opening, 0, own.trace)
        self._begin(session)

    # ---- recovery ----

    def _on_lost(self, session: HeadSession, error: SessionError) -> None:
        """A replica of the route is gone: the session stands still until the router names another one."""
        self._replica.recovery.hold(session.own)
        if error.lost.stage == self._replica.stage:
            session.leaving = True
            session.events.put_nowait(from_code(error.code, error.message, error.field))
        elif not session.lost:  # what else was lost shows once the session goes on
            session.lost = True
            self._schedule.remove(error.session)
            session.events.put_nowait(error.lost)

    async def reroute(self, request: RerouteRequest) -> None:
        """Go on with a session along another route.

        Raises:
            NotFound: no such session: it has ended meanwhile.
            InvalidArgument: a route that does not begin here, or an epoch that is not newer.
            FailedPrecondition: what is kept does not suffice.
        """
        session = self._sessions.get(request.session)
        if session is None or not session.own.open.hold or session.leaving:
            raise NotFound("session: it does not run here")
        own = session.own
        if len(request.route) != len(own.open.route) or request.route[0] != own.head:
            raise InvalidArgument("route: it does not begin at this replica", field="route")
        if not 0 < request.stage < len(request.route):
            raise InvalidArgument("stage: not one behind this replica", field="stage")
        epoch = _EPOCHS * request.epoch
        if epoch <= own.epoch:
            raise InvalidArgument("epoch: it is not newer than the session's", field="epoch")
        self._schedule.remove(own.session)
        while own.in_flight and not own.ended:  # noqa: ASYNC110 (some state cannot go back under a pass)
            await asyncio.sleep(0.001)
        if own.ended:
            raise FailedPrecondition("the session's state is gone")
        open_ = resumed(own.open, request)
        tell_history(open_, session.token_ids, session.prompt_tokens)
        self._replica.recovery.resume(own, epoch, open_, session.acknowledged)
        session.lost = False
        self._begin(session)

    async def _build(self, session: HeadSession) -> None:
        """Compute this stage's part of a session that another head had: all but the last token, which begins anew."""
        own = session.own
        session.acknowledged = len(session.token_ids) - 1
        for position in range(own.open.reused_tokens, session.acknowledged, self._chunk_tokens):
            ids = session.token_ids[position : min(position + self._chunk_tokens, session.acknowledged)]
            step = Step(
                session=own.session,
                epoch=own.epoch,
                kind=STEP_KIND_PREFILL,
                position=position,
                tokens=len(ids),
                rebuild=True,
            )
            pairs = [(own, step)]
            inputs = {"input_ids": torch.tensor(ids, device=self._replica.model.device)}
            await self._replica.run(Work(pairs, Batch(segments_of(pairs), inputs=inputs), []))
            if own.ended:
                session.waiting_event()

    def _forget(self, session: HeadSession) -> None:
        if self._sessions.get(session.own.session) is session:
            del self._sessions[session.own.session]
            self._schedule.remove(session.own.session)
            self._wake.set()

    # ---- the pump ----

    async def _run(self) -> None:
        """Make passes while sessions are ready: one computes, one waits behind it, the rest is decided later."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._waits.look(self._schedule.ready, time.monotonic())
            while self._computing < _QUEUED:
                planned = self._schedule.next_pass(
                    self._pace.chunk, plain=self._pace.stale, together=self._depth.now
                )
                if not planned:
                    break
                self._computing += 1
                self._waits.steps += len(planned)
                task = asyncio.create_task(self._pass(self._work(planned)))
                self._passes.add(task)
                task.add_done_callback(self._passes.discard)
            self._waits.look(self._schedule.ready, time.monotonic())

    def _work(self, planned: list[PlannedStep]) -> Work:
        steps: list[tuple[ReplicaSession, Step]] = []
        ids: list[int] = []
        for plan in planned:
            own = self._sessions[plan.session].own
            kind = STEP_KIND_PREFILL if plan.prefill else STEP_KIND_DECODE
            step = Step(
                session=plan.session,
                epoch=own.epoch,
                kind=kind,
                position=plan.position,
                tokens=len(plan.token_ids),
                sample=plan.sample,
            )
            if plan.first:
                step.open.CopyFrom(own.open)
            if plan.prefill:
                self._sessions[plan.session].chunks.append(plan.position + len(plan.token_ids))
            if not plan.prefill and needs_history(own.open.sampling):
                step.token_ids.extend(plan.token_ids)
            steps.append((own, step))
            ids.extend(plan.token_ids)
        segments: list[Segment] = segments_of(steps)
        tokens = torch.tensor(ids, device=self._replica.model.device)
        return Work(steps, Batch(segments, inputs={"input_ids": tokens}), [])

    async def _pass(self, work: Work) -> None:
        """Run a pass; a next replica that takes no more holds up its own sessions only."""
        try:
            await self._replica.run(work, self._computed)
        except Exception:
            log.exception("a pass was lost")
            for session in work.sessions:
                self._replica.fail_session(session, InternalError("the pass was lost"), self._replica.stage)

    def _computed(self) -> None:
        self._computing -= 1
        self._wake.set()
