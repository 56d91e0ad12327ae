"""Continuous batching at the head, as a pure state machine: which steps go through together next.

Iteration-level scheduling as in Orca (Yu et al., OSDI 2022), with chunked prefill as in Sarathi-Serve
(Agrawal et al., OSDI 2024): decode steps go first, and one prompt's chunk fills what is left of the budget.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Tokens of one session for the next pass; `sample` when the last stage chooses a token after it."""

    session: int
    position: int
    token_ids: tuple[int, ...]
    sample: bool
    prefill: bool


@dataclass(slots=True)
class _Running:
    """A session's tokens not yet sent down the pipeline; in flight while it waits for its next token."""

    position: int
    pending: list[int] = field(default_factory=list)
    prefill: bool = True


class Schedule:
    """Sessions of one head.

    Args:
        depth: stages of the pipeline: sessions are spread over that many micro-batches, so that every stage
            has one to work on.
        token_budget: tokens of one pass.
        max_rows: sessions of one pass.
    """

    def __init__(self, depth: int, token_budget: int = 512, max_rows: int = 64) -> None:
        self._depth = depth
        self._token_budget = token_budget
        self._max_rows = max_rows
        # Ready sessions, longest waiting first.
        self._ready: OrderedDict[int, _Running] = OrderedDict()
        self._in_flight: dict[int, _Running] = {}

    def __repr__(self) -> str:
        return f"<Schedule ready={len(self._ready)} in_flight={len(self._in_flight)}>"

    def __len__(self) -> int:
        return len(self._ready) + len(self._in_flight)

    @property
    def has_ready(self) -> bool:
        """Whether `next_pass` would return steps."""
        return bool(self._ready)

    def add(self, session: int, token_ids: list[int]) -> None:
        """A new session with its prompt (at least one token)."""
        self._ready[session] = _Running(0, list(token_ids))

    def token(self, session: int, token_id: int) -> None:
        """The last stage chose a token for a session that goes on; unknown sessions are ignored."""
        running = self._in_flight.pop(session, None)
        if running is not None:
            running.pending = [token_id]
            running.prefill = False
            self._ready[session] = running

    def remove(self, session: int) -> None:
        """The session is over, wherever it was."""
        self._ready.pop(session, None)
        self._in_flight.pop(session, None)

    def next_pass(self) -> list[PlannedStep]:
        """The steps of the next micro-batch; empty when no session is ready."""
        rows = min(self._max_rows, max(1, math.ceil(len(self) / self._depth)))
        budget = self._token_budget
        decodes = [s for s, running in self._ready.items() if not running.prefill][:rows]
        prefills = [s for s, running in self._ready.items() if running.prefill]
        steps: list[PlannedStep] = []
        for session in [*decodes, *prefills]:
            if len(steps) >= rows or budget <= 0:
                break
            running = self._ready.pop(session)
            taken, running.pending = tuple(running.pending[:budget]), running.pending[budget:]
            budget -= len(taken)
            steps.append(PlannedStep(session, running.position, taken, not running.pending, running.prefill))
            running.position += len(taken)
            if running.pending:
                self._ready[session] = running  # the next chunk of a long prompt
            else:
                self._in_flight[session] = running
        return steps
