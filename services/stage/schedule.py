"""Continuous batching at the head, as a pure state machine: which steps go through together next.

Iteration-level scheduling as in Orca (Yu et al., OSDI 2022), with chunked prefill as in Sarathi-Serve
(Agrawal et al., OSDI 2024): decode steps go first, and a chunk of a prompt rides along with them. How large a
chunk may be then is measured elsewhere (`pace.py`) and comes in as an argument; every pass may carry one, so that
all passes take about as long and no stage waits for another.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

# A prompt that has the pipeline to itself goes in that many chunks per stage, so that the stages overlap, ...
_CHUNKS_PER_STAGE = 4
# ... but not in smaller ones than this.
_SMALLEST_ALONE = 128
# Sessions of one pass.
MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Tokens of one session for the next pass: its first ones, and whether the last stage chooses a token after it."""

    session: int
    position: int
    token_ids: tuple[int, ...]
    first: bool
    sample: bool
    prefill: bool


@dataclass(slots=True, eq=False)
class Flight:
    """The part of a pass that goes to one next replica, until each of its steps is answered.

    Attributes:
        lane: that replica.
        waiting: sessions whose step has no answer yet.
        decodes: steps of one token, at the start.
        prompt_tokens: tokens of prompts, at the start.
    """

    lane: str
    waiting: set[int] = field(default_factory=set)
    decodes: int = 0
    prompt_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    """One session: its tokens not yet sent, and its steps that are under way, oldest first."""

    lane: str
    position: int
    pending: list[int]
    begun: bool = False
    decoding: bool = False
    flights: deque[Flight] = field(default_factory=deque)


class Schedule:
    """Sessions of one head.

    Args:
        depth: stages of the pipeline: sessions are spread over that many micro-batches, so that every stage
            has one to work on.
        token_budget: tokens of prompts in one pass.
        max_rows: sessions of one pass, at least 2.
    """

    def __init__(self, depth: int, token_budget: int = 512, max_rows: int = MAX_ROWS) -> None:
        if max_rows < 2:
            raise ValueError("a pass needs room for a decode step and a prompt")
        self._depth = depth
        self._token_budget = token_budget
        self._max_rows = max_rows
        self._sessions: dict[int, _Running] = {}
        # Asked for with each token, so it is kept.
        self._decoding = 0
        # Sessions with something to send, longest waiting first.
        self._decodes: OrderedDict[int, _Running] = OrderedDict()
        self._prompts: OrderedDict[int, _Running] = OrderedDict()
        self._under_way: dict[str, set[Flight]] = {}

    def __repr__(self) -> str:
        ready = len(self._decodes) + len(self._prompts)
        flights = sum(map(len, self._under_way.values()))
        return f"<Schedule ready={ready} of {len(self._sessions)} passes={flights}>"

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: int, token_ids: list[int], lane: str = "", position: int = 0) -> None:
        """A new session.

        Args:
            session: its id, not in use.
            token_ids: its prompt from `position` on, at least one token.
            lane: the replica that its steps go to from here.
            position: where it begins; what lies before is there already.
        """
        running = _Running(lane, position, list(token_ids))
        self._sessions[session] = self._prompts[session] = running

    def wait(self, session: int, lane: str, position: int) -> None:
        """A new session whose first step went off by itself; it goes on with the token that comes of it."""
        self._sessions[session] = _Running(lane, position, [], begun=True)

    def token(self, session: int, token_id: int) -> Flight | None:
        """The last stage chose a token for a session that goes on; unknown sessions are ignored.

        Returns:
            The part of a pass whose last answer this was.
        """
        flight = self.answered(session)
        running = self._sessions.get(session)
        if running is not None:
            running.pending = [token_id]
            self._decoding += not running.decoding
            running.decoding = True
            self._decodes[session] = running
        return flight

    def answered(self, session: int) -> Flight | None:
        """A step of the session came through; see `token` for what is returned."""
        running = self._sessions.get(session)
        if running is None or not running.flights:
            return None
        flight = running.flights.popleft()
        return flight if self._leave(flight, session) else None

    def remove(self, session: int) -> None:
        """The session is over, wherever it was; nobody waits for its steps any more."""
        self._decodes.pop(session, None)
        self._prompts.pop(session, None)
        running = self._sessions.pop(session, None)
        if running is not None:
            self._decoding -= running.decoding
            for flight in running.flights:
                self._leave(flight, session)

    @property
    def ready(self) -> int:
        """Sessions with something to send."""
        return len(self._decodes) + len(self._prompts)

    @property
    def decoding(self) -> int:
        """Sessions that decode."""
        return self._decoding

    @property
    def prompts(self) -> int:
        """Sessions whose prompts are not through yet."""
        return len(self._sessions) - self._decoding

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that are not through yet: those that wait, and those of passes under way."""
        waiting = sum(len(running.pending) for running in self._prompts.values())
        return waiting + sum(flight.prompt_tokens for parts in self._under_way.values() for flight in parts)

    def next_pass(self, chunk: int, *, plain: bool = False, together: int = 0) -> list[PlannedStep]:
        """The steps of the next micro-batch; empty when nothing may go now.

        Each next replica has at most `depth` parts of passes with decode steps under way, and in all `depth` while
        sessions decode and one more otherwise, which hides the way back; the others do not wait for it.

        Args:
            chunk: tokens of prompts that a pass may carry while sessions decode, at least 1.
            plain: leave them out of a pass with decode steps, so that one such pass can be measured.
            together: parts of passes while sessions decode, instead of `depth`.
        """
        decoding = self._decoding
        parts = together or self._depth
        rows = min(self._max_rows - 1, math.ceil(decoding / parts))
        decodes = [s for s, running in self._decodes.items() if self._decode_may_go(running.lane, parts)][
            :rows
        ]
        steps = [self._take(session, 1) for session in decodes]
        if decoding:
            budget = 0 if plain and steps else min(chunk, self._token_budget)
            room, share, passes = self._max_rows - len(steps), budget, parts
        else:
            budget, room, share = self._alone()
            passes = self._depth + 1
        prompts = [s for s, running in self._prompts.items() if self._parts(running.lane) < passes]
        for session in prompts[:room]:
            if budget <= 0:
                break
            step = self._take(session, min(budget, share))
            budget -= len(step.token_ids)
            steps.append(step)
        self._depart(steps)
        return steps

    def _alone(self) -> tuple[int, int, int]:
        """While nothing decodes: tokens of a pass, its sessions, and tokens of one prompt in it."""
        longest = max((len(running.pending) for running in self._prompts.values()), default=0)
        share = max(_SMALLEST_ALONE, math.ceil(longest / (_CHUNKS_PER_STAGE * self._depth)))
        room = min(self._max_rows, math.ceil(len(self._sessions) / self._depth))
        return self._token_budget, room, self._token_budget if self._depth == 1 else share

    def _take(self, session: int, most: int) -> PlannedStep:
        """The session's next tokens; what is left of a prompt queues up again behind the others."""
        running = self._sessions[session]
        (self._decodes if running.decoding else self._prompts).pop(session)
        taken, running.pending = tuple(running.pending[:most]), running.pending[most:]
        step = PlannedStep(
            session,
            running.position,
            taken,
            first=not running.begun,
            sample=not running.pending,
            prefill=not running.decoding,
        )
        running.begun = True
        running.position += len(taken)
        if running.pending:
            self._prompts[session] = running
        return step

    def _depart(self, steps: list[PlannedStep]) -> None:
        parts: dict[str, Flight] = {}
        for step in steps:
            running = self._sessions[step.session]
            flight = parts.setdefault(running.lane, Flight(running.lane))
            running.flights.append(flight)
            flight.waiting.add(step.session)
            if step.prefill:
                flight.prompt_tokens += len(step.token_ids)
            else:
                flight.decodes += 1
        for lane, flight in parts.items():
            self._under_way.setdefault(lane, set()).add(flight)

    def _leave(self, flight: Flight, session: int) -> bool:
        """Whether that was the last step of the part."""
        flight.waiting.discard(session)
        if flight.waiting:
            return False
        parts = self._under_way[flight.lane]
        parts.discard(flight)
        if not parts:
            del self._under_way[flight.lane]
        return True

    def _parts(self, lane: str) -> int:
        return len(self._under_way.get(lane, ()))

    def _decode_may_go(self, lane: str, parts: int) -> bool:
        return sum(flight.decodes > 0 for flight in self._under_way.get(lane, ())) < parts
