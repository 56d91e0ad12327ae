"""What a replica does when a neighbour of its sessions is lost: hold them, and go on beside its replacement.

1. A replica that loses its next one keeps its sessions, and tells the head through the feedback which replica was
   lost. One that loses the replica before it keeps them too, and waits. Each holds at most `HOLD_S`.
2. The router chooses another replica, and the head sends the session's next step in a new epoch, with the new route.
3. Whoever gets that step goes back to its position, if it was ahead: what was under way in the old epoch is void.
   State that cannot go back (a recurrent one) stays as it is, and what that step gave is sent on once more.
4. Whose next replica is a new one first replays the journal of what it had sent: steps that only build state. The
   step itself follows them on the same link.
5. Behind the new replica everything is as it was: the others find their keys and values up to that position.

A replica without its part of the session is lost for it like one that died, so the same repairs it. Where a journal
was dropped, or state cannot go back, the session's error sends the router back to its prompt and tokens.
"""

import logging
import time
from typing import Protocol

from stagemesh.errors import FailedPrecondition, ResourceExhausted, StagemeshError, Unavailable
from stagemesh.v1.stage_pb2 import (
    STEP_KIND_PREFILL,
    Frame,
    LostReplica,
    RerouteRequest,
    RouteHop,
    SessionError,
    Step,
    StepOpen,
)

from . import metrics
from .journal import Journals
from .links import Links
from .outgoing import Outgoing
from .partition.kv import PrefixMissing, rewind
from .passes import Computed, Work
from .session import ReplicaSession, session_error
from .tensors import to_message, to_view

log = logging.getLogger(__name__)

# How long a session is held for a replacement: longer than it takes to start another replica of most partitions.
HOLD_S = 30.0
# Of a session whose stream ended; streams are numbered from 1, and 0 is the head itself.
NO_UPSTREAM = -1


class StateMissing(FailedPrecondition):
    """This replica does not have its part of the session."""


class Owner(Protocol):
    """What recovery needs of the replica."""

    replica_id: str
    stage: int
    links: Links
    sessions: dict[int, ReplicaSession]

    def open_session(self, step: Step, upstream: int) -> ReplicaSession:
        """Make a session anew."""

    def end_session(self, session: ReplicaSession, error: str = "") -> None:
        """Free what it holds."""

    def close_session(self, session: ReplicaSession) -> None:
        """The same, and on the stages after this one."""

    def fail_session(self, session: ReplicaSession, error: StagemeshError, stage: int) -> None:
        """The same, and its head hears of it."""


class Recovery:
    """Of the sessions of one replica.

    Args:
        owner: the replica.
        model_name: for the metrics.
        journal_bytes: budget of what is kept of what was sent.
    """

    def __init__(self, owner: Owner, model_name: str, journal_bytes: int) -> None:
        self.journals = Journals(journal_bytes)
        self._owner = owner
        labels = (model_name, str(owner.stage))
        self._fenced = metrics.FENCED.labels(*labels)
        self._rebuilt = metrics.REBUILT.labels(*labels)
        self._held = metrics.HELD.labels(*labels)
        self._bytes = {part: metrics.JOURNAL_BYTES.labels(*labels, part) for part in ("sessions", "prompts")}
        self._dropped = metrics.JOURNALS_DROPPED.labels(*labels)

    # ---- what is sent ----

    def keep(self, out: Outgoing) -> None:
        """Remember what is being sent of the sessions that hold."""
        assert out.tensor is not None
        sides = out.frame.sides
        at = 0
        for session, step in out.steps:
            count = step.tokens
            self.journals.add(session.session, step.position, at, count, out.tensor, sides)
            at += count

    def built(self, work: Work, done: Computed) -> None:
        """A step that only builds state is computed: it is remembered as if it had been sent."""
        session, step = work.steps[0]
        self._rebuilt.inc(step.tokens)
        if session.next_hop is None or session.ended or session.epoch != step.epoch:
            return
        rows = done.activations
        sides = [to_message(side, name) for name, side in rows.sides.items()]
        self.journals.add(session.session, step.position, 0, step.tokens, to_view(rows.hidden), sides)

    def fence(self) -> None:
        """Count something of an older epoch."""
        self._fenced.inc()

    # ---- a neighbour is lost ----

    def hold(self, session: ReplicaSession) -> None:
        """Keep the session until somebody goes on with it."""
        session.held = session.held or time.time()

    def on_feedback(self, error: SessionError) -> None:
        """A replica behind this one tells of a session's end, or of the loss of one part of it."""
        session = self._owner.sessions.get(error.session)
        if session is None or session.epoch != error.epoch:
            return
        self._owner.links.report(session.upstream, error)
        if error.HasField("lost") and session.holds:
            self.hold(session)
        else:
            self._owner.end_session(session, error.message)

    def lost_toward(self, hop: RouteHop, error: StagemeshError) -> None:
        """A replica is gone that sessions go to next; or, seen from the last stage, their head."""
        for session in list(self._owner.sessions.values()):
            following = session.next_hop or session.head
            if following.replica_id != hop.replica_id or following.address != hop.address:
                continue
            if not session.holds:
                self._owner.fail_session(session, error, hop.stage)
            elif session.next_hop is not None:
                self.hold(session)
                self._report_lost(session, hop.stage, hop.replica_id, error)
            else:  # the head may live, and another last replica may reach it
                self.hold(session)
                self._report_lost(session, self._owner.stage, self._owner.replica_id, error)

    def upstream_lost(self, upstream: int) -> None:
        """A stream is over: nothing more comes for its sessions, unless another replica takes its sender's place."""
        self._owner.links.upstreams.pop(upstream, None)
        for session in [s for s in self._owner.sessions.values() if s.upstream == upstream]:
            if session.holds:
                session.upstream = NO_UPSTREAM
                self.hold(session)
            else:
                self._owner.close_session(session)

    def leave(self, error: StagemeshError) -> None:
        """The replica goes: its sessions go on without it where they can, and fail with `error` where not."""
        for session in list(self._owner.sessions.values()):
            if session.holds and len(session.open.route) > 1:
                self._report_lost(session, self._owner.stage, self._owner.replica_id, error)
                self._owner.end_session(session, error.message)
            else:
                self._owner.fail_session(session, error, self._owner.stage)

    def _report_lost(
        self, session: ReplicaSession, stage: int, replica_id: str, error: StagemeshError
    ) -> None:
        lost = LostReplica(stage=stage, replica_id=replica_id, code=error.grpc_code, message=error.message)
        self._owner.links.report(
            session.upstream, session_error(session.session, session.epoch, error, stage, lost)
        )

    def gone(self, step: Step, error: StagemeshError) -> SessionError:
        """What the head is told when a step cannot run here: the session's end, or the loss of this part only."""
        lost = None
        missing = isinstance(error, StateMissing | ResourceExhausted) and not isinstance(error, PrefixMissing)
        if missing and step.open.resume:
            lost = LostReplica(
                stage=self._owner.stage,
                replica_id=self._owner.replica_id,
                code=error.grpc_code,
                message=error.message,
            )
        return session_error(step.session, step.epoch, error, self._owner.stage, lost)

    def overdue(self, now: float) -> None:
        """End sessions that nobody went on with, and set the gauges. A head's own wait for the router as long as it does."""
        held = [session for session in self._owner.sessions.values() if session.held is not None]
        for session in held:
            if session.held is not None and now > session.held + HOLD_S and session.upstream:
                log.info("session.abandoned stage=%d: nobody went on with it", self._owner.stage)
                self._owner.close_session(session)
        self._held.set(len(held))
        idle = self.journals.idle_bytes
        self._bytes["sessions"].set(self.journals.used_bytes - idle)
        self._bytes["prompts"].set(idle)
        self._dropped.inc(self.journals.take_dropped())

    # ---- it goes on ----

    def opened(self, step: Step, session: ReplicaSession | None, upstream: int) -> ReplicaSession:
        """The session of a step that opens it, or goes on with it in a new epoch.

        Raises:
            StateMissing: it should be here and is not.
            FailedPrecondition: the next replica cannot be built again.
            ResourceExhausted: no KV memory for it.
        """
        if not step.open.resume or step.rebuild:
            return self._owner.open_session(step, upstream)
        if session is None:
            if step.position == step.open.reused_tokens:
                return self._owner.open_session(step, upstream)
            raise StateMissing("the replica does not have its part of the session")
        if session.epoch == step.epoch and session.position == step.position:
            return session  # it was built a moment ago
        if step.position > session.position:
            raise StateMissing("the replica has not been told as much of the session")
        session.upstream = upstream
        self.resume(session, step.epoch, step.open, step.position)
        return session

    def resume(self, session: ReplicaSession, epoch: int, opening: StepOpen, position: int) -> None:
        """Go on at `position` in a new epoch; a next replica that is another one is built first.

        Raises:
            StateMissing: what is here cannot go back to that position.
            FailedPrecondition: the next replica cannot be built again.
        """
        assert session.kv is not None
        rebuilds = opening.rebuilt_stage == session.stage + 1
        journal = self.journals.get(session.session)
        if rebuilds and (journal is None or journal.end < position):
            raise FailedPrecondition("what the lost replica had been sent is not kept any more")
        repeats = None
        if not rewind(session.kv, position, busy=session.in_flight > 0):
            if not self._can_repeat(session, position):
                raise StateMissing("the replica's part of the session cannot go back to that position")
            repeats = position
        session.follow(opening)
        session.epoch, session.position = epoch, position
        session.held = session.history = None
        session.repeats = repeats
        if repeats is None:
            self.journals.cut(session.session, position)
        if rebuilds and session.next_hop is not None:
            self._rebuild(session, session.next_hop, position)

    def _can_repeat(self, session: ReplicaSession, position: int) -> bool:
        """Whether the step at `position` is through here already, and what it gave is still known."""
        journal = self.journals.get(session.session)
        return (
            session.kv is not None
            and not session.in_flight
            and session.kv.length == position + 1
            and journal is not None
            and journal.end == position + 1
        )

    def repeat(self, session: ReplicaSession, step: Step) -> None:
        """Send on what the step gave when it was computed in an older epoch: this state cannot go back."""
        assert session.next_hop is not None, "the last stage has no journal"
        session.repeats = None
        ((_, _, tensor, sides),) = self.journals.chunks(session.session, step.position + 1, step.position)
        try:
            self._owner.links.to(session.next_hop).post(Frame(steps=[step], sides=sides), tensor)
        except Unavailable as error:
            self.lost_toward(session.next_hop, error)

    def repeat_first(self, session: ReplicaSession) -> None:
        """The same at the head, where the step begins."""
        assert session.repeats is not None
        step = Step(
            session=session.session,
            epoch=session.epoch,
            kind=STEP_KIND_PREFILL,
            position=session.repeats,
            tokens=1,
            sample=True,
            open=session.open,
        )
        self.repeat(session, step)

    def _rebuild(self, session: ReplicaSession, hop: RouteHop, end: int) -> None:
        """Send the next replica all that the lost one had been sent before `end`."""
        journal = self.journals.get(session.session)
        assert journal is not None, "looked at before anything was changed"
        opening = StepOpen()
        opening.CopyFrom(session.open)
        opening.reused_tokens = journal.start
        link = self._owner.links.to(hop)
        for at, count, tensor, sides in self.journals.chunks(session.session, end):
            step = Step(
                session=session.session,
                epoch=session.epoch,
                kind=STEP_KIND_PREFILL,
                position=at,
                tokens=count,
                rebuild=True,
            )
            if at == opening.reused_tokens:
                step.open.CopyFrom(opening)
            link.post(Frame(steps=[step], sides=sides), tensor)
        log.info("session.rebuilding stage=%d replica=%s positions=%d", hop.stage, hop.replica_id, end)


def resumed(opening: StepOpen, request: RerouteRequest) -> StepOpen:
    """The settings of a session that goes on along another route; what penalties know is still to be told."""
    changed = StepOpen()
    changed.CopyFrom(opening)
    del changed.route[:], changed.prompt_token_ids[:], changed.generated_token_ids[:]
    changed.route.extend(request.route)
    changed.resume, changed.rebuilt_stage = True, request.stage
    return changed
