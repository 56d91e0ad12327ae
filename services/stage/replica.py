"""One loaded partition at work: frames in, a pass, frames out. The same code on every stage of a route."""

import asyncio
import logging
import time
from collections.abc import Callable

import torch
from opentelemetry.context import Context

from stagemesh.errors import InternalError, StagemeshError, Unavailable
from stagemesh.tensor import TensorView
from stagemesh.tracing import extract
from stagemesh.v1.stage_pb2 import (
    Feedback,
    Frame,
    HopRecord,
    ReplicaLoad,
    RouteHop,
    SessionClose,
    SessionError,
    Step,
    StepKind,
    StepResult,
)

from . import metrics
from .engine import Engine, Timing
from .link import Link
from .partition.kv import KVPool
from .partition.model import Batch, PartitionModel
from .passes import Work, compute, outgoing, segments_of
from .session import ReplicaSession
from .spans import record_session
from .tensors import from_view

log = logging.getLogger(__name__)

# A session without a deadline that is not heard of for this long is dropped.
IDLE_TIMEOUT_S = 600.0


class Replica:
    """A partition with its sessions, its compute thread and its links.

    `head` is set by `Head` on stage 0: it receives results and errors there.
    """

    def __init__(
        self, replica_id: str, model_name: str, stage: int, model: PartitionModel, kv_bytes: int
    ) -> None:
        self.replica_id = replica_id
        self.model_name = model_name
        self.stage = stage
        self.model = model
        self.pool = KVPool(kv_bytes, model.kv_token_bytes, model.layers)
        self.engine = Engine(replica_id)
        self.sessions: dict[int, ReplicaSession] = {}
        self.on_result: Callable[[StepResult, TensorView | None, list[HopRecord]], None] | None = None
        self.on_error: Callable[[SessionError], None] | None = None
        # Streams that frames come in on: id -> how to answer.
        self.upstreams: dict[int, Callable[[Feedback], None]] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return (
            f"<Replica {self.replica_id} {self.model_name}/{self.stage} sessions={len(self.sessions)} "
            f"{self.engine!r} {self.pool!r}>"
        )

    def load(self) -> ReplicaLoad:
        """What this replica has to do now."""
        return ReplicaLoad(
            replica_id=self.replica_id,
            queue_depth=self.engine.waiting,
            sessions=len(self.sessions),
            step_ms=self.engine.step_ms,
            kv_bytes_used=self.pool.used_bytes,
            kv_bytes_total=self.pool.budget_bytes,
        )

    # ---- sessions ----

    def open_session(self, step: Step, upstream: int, trace: Context | None = None) -> ReplicaSession:
        """Make a session from its first step and reserve what it needs.

        Raises:
            ResourceExhausted: no KV memory for it.
        """
        known = self.sessions.get(step.session)
        if known is not None:
            self.end_session(known)
        context = trace if trace is not None else extract((("traceparent", step.open.traceparent),))
        session = ReplicaSession(
            step.session, step.epoch, step.open, self.stage, upstream, context, time.time()
        )
        if step.kind != StepKind.STEP_KIND_STATELESS:
            session.kv = self.pool.reserve(step.open.max_total_tokens)
        self.sessions[step.session] = session
        metrics.SESSIONS.labels(self.model_name, str(self.stage)).set(len(self.sessions))
        return session

    def end_session(self, session: ReplicaSession, error: str = "") -> None:
        """Free what a session holds; a second call does nothing."""
        if self.sessions.get(session.session) is not session:
            return
        del self.sessions[session.session]
        if session.kv is not None:
            self.pool.release(session.kv)
            session.kv = None
        metrics.SESSIONS.labels(self.model_name, str(self.stage)).set(len(self.sessions))
        record_session(session, self.replica_id, self.model_name, time.time(), error)

    async def close_session(self, session: ReplicaSession) -> None:
        """End a session here and tell the stages after this one."""
        hop = session.next_hop
        self.end_session(session)
        if hop is None:
            return
        link = self._links.get((hop.address, hop.replica_id))
        if link is not None and not link.broken:
            close = SessionClose(session=session.session, epoch=session.epoch)
            try:
                await link.send(Frame(closes=[close]))
            except Unavailable:
                pass  # the stage is gone, and the session with it

    def fail_session(self, session: ReplicaSession, error: StagemeshError, stage: int) -> None:
        """End a session with an error that its head must hear of."""
        self.report(
            session.upstream,
            SessionError(
                session=session.session,
                epoch=session.epoch,
                code=error.grpc_code,
                message=error.message,
                stage=stage,
                field=error.field,
            ),
        )
        self.end_session(session, error.message)

    def report(self, upstream: int, error: SessionError) -> None:
        """Send an error towards the head."""
        metrics.SESSION_ERRORS.labels(self.model_name, str(self.stage)).inc()
        if upstream == 0:
            if self.on_error is not None:
                self.on_error(error)
            return
        answer = self.upstreams.get(upstream)
        if answer is not None:
            answer(Feedback(errors=[error]))

    def drop_overdue(self, now: float) -> None:
        """Fail sessions whose deadline passed: whoever owned them may be gone."""
        for session in list(self.sessions.values()):
            deadline_ms = session.open.deadline_unix_ms
            limit = deadline_ms / 1000 + 5 if deadline_ms else session.opened + IDLE_TIMEOUT_S
            if now > limit:
                self.fail_session(session, Unavailable("the session was abandoned"), self.stage)

    # ---- passes ----

    async def run(self, work: Work, computed: Callable[[], None] | None = None) -> None:
        """Compute a pass and send what it gave to where each session goes next; `computed` is called in between."""
        try:
            done, timing = await self.engine.run(lambda: compute(self.model, work))
        except Exception as error:
            log.exception("a pass failed")
            known = (
                error
                if isinstance(error, StagemeshError)
                else InternalError("the model failed on this input")
            )
            for session in work.sessions:
                self.fail_session(session, known, self.stage)
            return
        finally:
            if computed is not None:
                computed()
        hop = self._hop(timing, work)
        encoding = time.perf_counter()
        frames = outgoing(self.model, work, done)
        hop.encode_us = int((time.perf_counter() - encoding) * 1e6)
        for session in work.sessions:
            session.record(hop, timing.queued)
        self._observe(hop)
        for session, failure in done.failed:
            self.fail_session(session, failure, self.stage)
        hops = [*work.hops, hop]
        for target, frame, tensor in frames:
            if target.replica_id == self.replica_id:
                self._deliver(frame, tensor, hops)
                continue
            frame.hops.extend(hops)
            frame.sent_unix_us = int(time.time() * 1e6)
            try:
                await self.link_to(target).send(frame, tensor)
            except Unavailable as error:
                self._fail_toward(target, error)
        if self.stage:  # a stateless session is over on the last stage once its outputs are on their way
            for session, _, _ in done.outputs:
                self.end_session(session)

    def _deliver(self, frame: Frame, tensor: TensorView | None, hops: list[HopRecord]) -> None:
        """Hand results to this replica's own head."""
        for result in frame.results:
            if self.on_result is not None:
                self.on_result(result, tensor, hops)

    def _hop(self, timing: Timing, work: Work) -> HopRecord:
        return HopRecord(
            stage=self.stage,
            replica_id=self.replica_id,
            queue_us=timing.queue_us,
            compute_us=timing.compute_us,
            network_us=work.network_us,
            load=self.load(),
        )

    def _observe(self, hop: HopRecord) -> None:
        for part, us in (
            ("queue", hop.queue_us),
            ("compute", hop.compute_us),
            ("encode", hop.encode_us),
            ("network", hop.network_us),
        ):
            metrics.STEP_SECONDS.labels(self.model_name, str(self.stage), part).observe(us / 1e6)

    # ---- frames that come in ----

    async def on_frame(self, frame: Frame, tensor: TensorView | None, upstream: int) -> None:
        """Handle a frame of the stream `upstream`: closes, results for the head, and steps to compute."""
        network_us = max(0, int(time.time() * 1e6) - frame.sent_unix_us) if frame.sent_unix_us else 0
        for close in frame.closes:
            session = self.sessions.get(close.session)
            if session is not None and session.epoch <= close.epoch:
                await self.close_session(session)
        self._deliver(frame, tensor, list(frame.hops))
        if frame.steps:
            await self._on_steps(frame, tensor, upstream, min(network_us, 2**31))

    async def _on_steps(
        self, frame: Frame, tensor: TensorView | None, upstream: int, network_us: int
    ) -> None:
        if tensor is None or tensor.shape != (sum(s.tokens for s in frame.steps), self.model.hidden_size):
            raise InternalError("a frame's tensor does not fit its steps")
        hidden = from_view(tensor, self.model.device).to(self.model.dtype)
        steps: list[tuple[ReplicaSession, Step]] = []
        rows: list[torch.Tensor] = []
        at = 0
        for step in frame.steps:
            here = hidden[at : at + step.tokens]
            at += step.tokens
            session = self._session_of(step, upstream)
            if session is None:
                continue
            steps.append((session, step))
            rows.append(here)
        if not steps:
            return
        kept = hidden if len(steps) == len(frame.steps) else torch.cat(rows)
        batch = Batch(segments_of(steps), hidden=kept)
        await self.run(Work(steps, batch, list(frame.hops), network_us))

    def _session_of(self, step: Step, upstream: int) -> ReplicaSession | None:
        """The session of a step that came in; None, and an error upstream, when it cannot run here."""
        session = self.sessions.get(step.session)
        try:
            if step.HasField("open") and (session is None or session.epoch <= step.epoch):
                session = self.open_session(step, upstream)
            elif session is None:
                raise Unavailable(f"stage {self.stage} does not know the session")
            if step.epoch < session.epoch:
                return None  # a late frame of before a recovery
            if session.kv is not None and step.position != session.kv.length:
                raise InternalError(f"step at position {step.position}, expected {session.kv.length}")
            if session.kv is not None and step.position + step.tokens > session.kv.capacity:
                raise InternalError("step beyond the reserved positions")
        except StagemeshError as error:
            if session is not None:
                self.fail_session(session, error, self.stage)
            else:
                self.report(
                    upstream,
                    SessionError(
                        session=step.session,
                        epoch=step.epoch,
                        code=error.grpc_code,
                        message=error.message,
                        stage=self.stage,
                    ),
                )
            return None
        return session

    # ---- links ----

    def link_to(self, hop: RouteHop) -> Link:
        """The link to a replica; made when there is none that works."""
        key = (hop.address, hop.replica_id)
        link = self._links.get(key)
        if link is None or link.broken:
            link = self._links[key] = Link(self.replica_id, hop, self._on_feedback, self._on_broken)
        return link

    def _on_feedback(self, link: Link, feedback: Feedback) -> None:
        for error in feedback.errors:
            session = self.sessions.get(error.session)
            if session is not None and session.epoch == error.epoch:
                self.report(session.upstream, error)
                self.end_session(session, error.message)

    async def _on_broken(self, link: Link, error: StagemeshError) -> None:
        self._fail_toward(link.hop, error)

    def _fail_toward(self, hop: RouteHop, error: StagemeshError) -> None:
        """Fail the sessions whose next hop, or whose head (seen from the last stage), was lost."""
        for session in list(self.sessions.values()):
            following = session.next_hop or session.head
            if following.replica_id == hop.replica_id and following.address == hop.address:
                self.fail_session(session, error, hop.stage)

    def upstream_lost(self, upstream: int) -> None:
        """The stream is over: nothing more comes for its sessions."""
        self.upstreams.pop(upstream, None)
        for session in [s for s in self.sessions.values() if s.upstream == upstream]:
            task = asyncio.create_task(self.close_session(session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End every session and link, and the compute thread."""
        for session in list(self.sessions.values()):
            self.fail_session(session, Unavailable("the replica is shutting down"), self.stage)
        await asyncio.gather(
            *(link.close() for link in self._links.values()), *self._tasks, return_exceptions=True
        )
        self.engine.close()
