"""What the head keeps of a session beside what every replica does."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from stagemesh.errors import DeadlineExceeded, StagemeshError
from stagemesh.v1.stage_pb2 import FinishReason, LostReplica, SessionEvent, StepResult

from .session import ReplicaSession
from .timings import Timings

Event = StepResult | LostReplica


@dataclass(slots=True, eq=False)
class HeadSession:
    """One generation at its head.

    Attributes:
        own: what this replica keeps of it.
        max_tokens: new ones at most.
        stop_ids: it ends after one of these.
        events: bounded by what a session can ever get: its tokens, and one error or loss at a time.
        token_ids: prompt and tokens so far.
        prompt_tokens: how many of them are the prompt.
        generated: how many are not.
        acknowledged: positions that the last stage has answered for.
        chunks: where each chunk that is under way ends, oldest first.
        lost: it stands still until the router says which replica takes the place of a lost one.
        leaving: this replica goes, and the session goes on with another head.
        timings: where its time went.
    """

    own: ReplicaSession
    max_tokens: int
    stop_ids: frozenset[int]
    events: asyncio.Queue[Event | StagemeshError]
    token_ids: list[int]
    prompt_tokens: int
    generated: int
    acknowledged: int = 0
    chunks: deque[int] = field(default_factory=deque)
    lost: bool = False
    leaving: bool = False
    timings: Timings = field(default_factory=Timings)

    async def next_event(self) -> Event:
        """Wait for what comes next; raises the session's error, or `DeadlineExceeded`."""
        deadline_ms = self.own.open.deadline_unix_ms
        left = deadline_ms / 1000 - time.time() if deadline_ms else None
        try:
            event = await asyncio.wait_for(self.events.get(), left)
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed while it ran") from None
        return _or_raise(event)

    def waiting_event(self) -> Event:
        """What has come already; raises the session's error."""
        return _or_raise(self.events.get_nowait())

    def finish_of(self, event: SessionEvent) -> FinishReason | None:
        """Whether its last token ends the session."""
        if event.tokens[-1].id in self.stop_ids:
            return FinishReason.FINISH_REASON_STOP
        if self.generated >= self.max_tokens:
            return FinishReason.FINISH_REASON_LENGTH
        return None


def _or_raise(event: Event | StagemeshError) -> Event:
    if isinstance(event, StagemeshError):
        raise event
    return event
