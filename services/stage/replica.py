"""One loaded partition at work: frames in, a pass, frames out. The same code on every stage of a route."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial

from opentelemetry.context import Context

from stagemesh.errors import InternalError, StagemeshError, Unavailable
from stagemesh.prefix import split_digests
from stagemesh.tensor import TensorView
from stagemesh.tracing import extract
from stagemesh.v1.stage_pb2 import (
    STEP_KIND_STATELESS,
    Frame,
    HopRecord,
    ReplicaLoad,
    SessionClose,
    Step,
    StepResult,
)

from . import metrics
from .account import Account
from .countdown import Countdown
from .engine import Engine
from .jobs import Outcome
from .links import Links
from .load_report import Totals
from .outgoing import outgoing
from .partition.interface import Partition
from .partition.kv import KVPool
from .passes import Computed, Work, compute, next_hops, received
from .recovery import Recovery
from .replica_state import load_of, totals_of
from .session import ReplicaSession, session_error
from .short import size_of
from .spans import record_session
from .step_waits import StepWaits
from .together import DecodePass

log = logging.getLogger(__name__)

# A session without a deadline that is not heard of for this long is dropped.
IDLE_TIMEOUT_S = 600.0


def _nothing() -> None:
    """For those who wait for nothing."""


def _none() -> int:
    """For replicas that no prompt waits at."""
    return 0


class Replica:
    """A partition with its sessions, its compute thread and its links.

    `head` is set by `Head` on stage 0: it receives results and errors there.
    """

    def __init__(
        self,
        replica_id: str,
        model_name: str,
        stage: int,
        model: Partition,
        kv_bytes: int,
        journal_bytes: int = 2**27,
        nice: int = 0,
    ) -> None:
        self.replica_id = replica_id
        self.model_name = model_name
        self.stage = stage
        self.model = model
        self.pool = KVPool(kv_bytes, model.kv_layout)
        self.engine = Engine(replica_id, nice)
        # Of a head: until steps are in a pass.
        self.step_waits = StepWaits()
        self.sessions: dict[int, ReplicaSession] = {}
        self.on_result: Callable[[StepResult, TensorView | None, list[HopRecord]], None] | None = None
        # Tokens of prompts that wait at the head.
        self.prompt_tokens: Callable[[], int] = _none
        # Frames that came in and are not done with.
        self.held = 0
        self._account = Account(replica_id, model_name, stage)
        self.recovery = Recovery(self, model_name, journal_bytes)
        self.links = Links(
            replica_id, model_name, stage, self.recovery.on_feedback, self.recovery.lost_toward
        )
        labels = (model_name, str(stage))
        self._sessions_gauge = metrics.SESSIONS.labels(*labels)
        # Weakly: a gauge lives as long as the process, and must not keep an unloaded partition's weights.
        found = weakref.ref(self)
        metrics.FRAMES_HERE.labels(*labels, "held").set_function(lambda: me.held if (me := found()) else 0)
        metrics.FRAMES_HERE.labels(*labels, "outbox").set_function(
            lambda: me.links.queued if (me := found()) else 0
        )

    def __repr__(self) -> str:
        return (
            f"<Replica {self.replica_id} {self.model_name}/{self.stage} sessions={len(self.sessions)} "
            f"{self.engine!r} {self.pool!r}>"
        )

    def load(self) -> ReplicaLoad:
        """What this replica has to do now."""
        return load_of(self, self._account.costs)

    def totals(self) -> Totals:
        """What it did since it was loaded, and what it holds now."""
        return totals_of(self)

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
        if step.kind != STEP_KIND_STATELESS:
            prefix = split_digests(step.open.prefix_digests)
            session.kv = self.pool.reserve(step.open.max_total_tokens, prefix, step.open.reused_tokens)
            session.position = step.open.reused_tokens
            if step.open.hold and session.next_hop is not None:
                self.recovery.journals.open(session.session, prefix, session.position)
        if not self.sessions:
            self._account.occupied_since = session.opened
        self.sessions[step.session] = session
        self._sessions_gauge.set(len(self.sessions))
        return session

    def end_session(self, session: ReplicaSession, error: str = "") -> None:
        """Free what a session holds, once no pass is using it; a second call does nothing."""
        if self.sessions.get(session.session) is not session:
            return
        del self.sessions[session.session]
        session.ended = True
        self.recovery.journals.forget(session.session)
        if not session.in_flight:
            self._release(session)
        self._sessions_gauge.set(len(self.sessions))
        record_session(session, self.replica_id, self.model_name, time.time(), error)

    def _release(self, session: ReplicaSession) -> None:
        if session.kv is not None:
            self.pool.release(session.kv)
            session.kv = None

    def close_session(self, session: ReplicaSession) -> None:
        """End a session here and tell the stages after this one; each of them, when the next one was lost."""
        self.end_session(session)
        close = SessionClose(session=session.session, epoch=session.epoch)
        for hop in session.open.route[self.stage + 1 :]:
            link = self.links.known(hop)
            if link is None and (session.held is not None or session.open.resume):
                link = self.links.to(hop)
            if link is not None and not link.broken:
                link.post(Frame(closes=[close]))
            if session.held is None:
                return

    def fail_session(self, session: ReplicaSession, error: StagemeshError, stage: int) -> None:
        """End a session with an error that its head must hear of."""
        self.links.report(session.upstream, session_error(session.session, session.epoch, error, stage))
        self.end_session(session, error.message)

    def lose(self, error: StagemeshError) -> None:
        """This replica leaves: its sessions go on without it where they can, and fail with `error` where not."""
        self.recovery.leave(error)

    def drop_overdue(self, now: float) -> None:
        """Fail sessions whose deadline passed: whoever owned them may be gone."""
        self.recovery.overdue(now)
        for session in list(self.sessions.values()):
            deadline_ms = session.open.deadline_unix_ms
            limit = deadline_ms / 1000 + 5 if deadline_ms else session.opened + IDLE_TIMEOUT_S
            if now > limit:
                self.fail_session(session, Unavailable("the session was abandoned"), self.stage)

    # ---- passes ----

    async def run(self, work: Work, computed: Callable[[], None] = _nothing) -> None:
        """Compute a pass that begins here; returns when what it gave is in the outboxes of the next stages.

        A stateless pass waits before it computes while a link that it goes to has more than it can send: there may
        be any number of them, and their results are large. Generation is bounded by its sessions.

        Args:
            work: of sessions that are open here.
            computed: called once, as soon as the next pass may follow.
        """
        if self.engine.ran_this_turn:
            await asyncio.sleep(0)  # one pass on the loop's thread, and then others have their turn
        links = [self.links.to(hop) for hop in next_hops(work)] if work.stateless else []
        while waits := next((link for link in links if link.full), None):
            await waits.room()
        for link in links:
            link.reserved += 1
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def posted() -> None:
            for link in links:
                link.reserved -= 1
            computed()
            if not over.done():
                over.set_result(None)

        self._start(work, posted=posted)
        await over

    def _start(
        self, work: Work, posted: Callable[[], None] = _nothing, sent: Callable[[], None] = _nothing
    ) -> None:
        """Queue a pass.

        Args:
            work: of sessions that are not released before it is over.
            posted: called once when what it gave is in outboxes, or it failed.
            sent: called once when all of that has left this process.
        """
        for session in work.sessions:
            session.in_flight += 1
        self.engine.submit(
            partial(compute, self.model, work),
            lambda outcome: self._computed(work, outcome, posted, sent),
            size_of(work.batch.segments),
            # Where nothing is before it, it does not wait.
            DecodePass.of(self.model, work) if self.engine.waiting else None,
        )

    def _computed(
        self, work: Work, outcome: Outcome[Computed], posted: Callable[[], None], sent: Callable[[], None]
    ) -> None:
        """A pass is over: send what it gave to where each session goes next, then account for it."""
        for session in work.sessions:
            session.in_flight -= 1
            if session.kv is not None and outcome.error is None:
                session.kv.name_blocks()
            if session.ended and not session.in_flight:
                self._release(session)
        sending = Countdown(sent)
        try:
            if outcome.error is not None:
                raise outcome.error
            assert outcome.result is not None
            self._send(work, outcome.result, outcome, sending)
        except Exception as error:
            known = error
            if not isinstance(error, StagemeshError):
                log.error("a pass failed", exc_info=error)
                known = InternalError("the model failed on this input")
            assert isinstance(known, StagemeshError)
            for session in work.sessions:
                if not session.ended:
                    self.fail_session(session, known, self.stage)
        posted()
        sending.done()

    def _send(self, work: Work, done: Computed, outcome: Outcome[Computed], sending: Countdown) -> None:
        timing = outcome.timing
        hop = self._account.hop(timing, work, self.load() if self._account.load_is_due(work) else None)
        encoding = time.perf_counter()
        if work.rebuild:
            self.recovery.built(work, done)
        frames = [] if work.rebuild else outgoing(self.model, work, done)
        hop.encode_us = int((time.perf_counter() - encoding) * 1e6)
        now_us = int(time.time() * 1e6)
        for out in frames:
            target, frame = out.target, out.frame
            if target.replica_id == self.replica_id:
                self._deliver(frame, out.tensor, [*work.hops, hop])
                continue
            if out.steps:
                self.recovery.keep(out)
            if frame is not work.frame:
                frame.hops.extend(work.hops)
            frame.hops.append(hop)
            frame.sent_unix_us = now_us
            try:
                self.links.to(target).post(frame, out.tensor, sending.more())
            except Unavailable as error:
                sending.done()
                self.recovery.lost_toward(target, error)
        self._account.passed(hop, timing, work)
        for session, failure in done.failed:
            self.fail_session(session, failure, self.stage)
        if self.stage:  # a stateless session is over on the last stage once its outputs are on their way
            for session, _, _ in done.outputs:
                self.end_session(session)

    def _deliver(self, frame: Frame, tensor: TensorView | None, hops: list[HopRecord]) -> None:
        """Hand results to this replica's own head."""
        for result in frame.results:
            if self.on_result is not None:
                self.on_result(result, tensor, hops)

    # ---- frames that come in ----

    def on_frame(
        self, frame: Frame, tensor: TensorView | None, upstream: int, over: Callable[[], None]
    ) -> None:
        """Handle a frame of the stream `upstream`: closes, results for the head, and steps to compute.

        Args:
            frame: without its tensor.
            tensor: rows of its steps, or outputs of its results.
            upstream: id of the stream.
            over: called once, at once or later, when nothing of the frame is held here any more.

        Raises:
            StagemeshError: the frame makes no sense, and `over` is not called.
        """
        network_us = max(0, int(time.time() * 1e6) - frame.sent_unix_us) if frame.sent_unix_us else 0
        if frame.closes:
            self._take_closes(list(frame.closes))
        if frame.results:
            self._deliver(frame, tensor, list(frame.hops))
        work = None
        if frame.steps:
            work = received(
                self.model,
                frame,
                tensor,
                lambda step: self._session_of(step, upstream),
                min(network_us, 2**31),
            )
        if work is None:
            over()
        else:
            self._start(work, sent=over)

    def _take_closes(self, closes: list[SessionClose]) -> None:
        """End sessions, after the passes that are queued: what these give goes out before the close does."""

        def close(_: object = None) -> None:
            for one in closes:
                session = self.sessions.get(one.session)
                if session is not None and session.epoch <= one.epoch:
                    self.close_session(session)

        if self.engine.waiting:
            self.engine.submit(_nothing, close)
        else:
            close()

    def _session_of(self, step: Step, upstream: int) -> ReplicaSession | None:
        """The session of a step that came in; None, and an error upstream, when it cannot run here."""
        session = self.sessions.get(step.session)
        try:
            if step.HasField("open") and (session is None or session.epoch <= step.epoch):
                session = self.recovery.opened(step, session, upstream)
            elif session is None:
                raise Unavailable(f"stage {self.stage} does not know the session")
            if step.epoch < session.epoch:
                self.recovery.fence()
                return None  # a late frame of before a recovery
            if session.kv is not None:
                if step.position != session.position:
                    raise InternalError(f"step at position {step.position}, expected {session.position}")
                if step.position + step.tokens > session.kv.capacity:
                    raise InternalError("step beyond the reserved positions")
                session.position += step.tokens
                if session.repeats == step.position and step.tokens == 1:
                    self.recovery.repeat(session, step)
                    return None
        except StagemeshError as error:
            if session is not None:
                self.end_session(session, error.message)
            self.links.report(upstream, self.recovery.gone(step, error))
            return None
        return session

    async def close(self) -> None:
        """End every session and link, and the compute thread."""
        self.lose(Unavailable("the replica is shutting down"))
        self.engine.close()
        await self.links.close()
