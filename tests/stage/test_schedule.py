"""Properties of continuous batching: nothing lost, nothing twice, in order, within bounds, nobody starves."""

import math
from collections import defaultdict, deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stagemesh.services.stage.schedule import Flight, PlannedStep, Schedule

NEW = 3


class Batching(RuleBasedStateMachine):
    """Sessions that come, are planned, answered in any order between sessions, and leave; each gets `NEW` tokens."""

    @initialize(depth=st.integers(1, 4), budget=st.integers(1, 300), max_rows=st.integers(2, 8))
    def begin(self, depth: int, budget: int, max_rows: int) -> None:
        self.depth, self.budget, self.max_rows = depth, budget, max_rows
        self.schedule = Schedule(depth, budget, max_rows)
        self.prompts: dict[int, int] = {}
        self.lane: dict[int, str] = {}
        self.sent: dict[int, int] = defaultdict(int)
        self.chosen: dict[int, int] = defaultdict(int)
        # Steps without an answer, oldest first, and the passes that they belong to.
        self.under_way: dict[int, deque[tuple[int, PlannedStep]]] = defaultdict(deque)
        self.passes = 0
        # Those of them that have decode steps, by lane.
        self.decode_passes: dict[str, set[int]] = defaultdict(set)
        # Passes since a session last had anything to send and was not in one that had room for it.
        self.passed_over: dict[int, int] = defaultdict(int)

    def ready(self, session: int) -> bool:
        prompt, sent, chosen = self.prompts[session], self.sent[session], self.chosen[session]
        return sent < prompt or sent < prompt + chosen

    def decoding(self, session: int) -> bool:
        return self.chosen[session] > 0

    def parts(self, lane: str, decodes: bool = False) -> int:
        """Parts of passes under way to a replica; with decode steps only, if asked."""
        found = {
            number
            for session, steps in self.under_way.items()
            for number, _ in steps
            if self.lane[session] == lane
        }
        if decodes:
            found &= self.decode_passes[lane]
        return len(found)

    @rule(length=st.integers(1, 700), lane=st.sampled_from("ab"))
    def add(self, length: int, lane: str) -> None:
        session = len(self.sent)
        self.prompts[session], self.lane[session] = length, lane
        self.sent[session] = 0
        self.schedule.add(session, list(range(length)), lane)

    @rule(chunk=st.integers(1, 64), plain=st.booleans())
    def plan(self, chunk: int, plain: bool) -> None:
        self.next_pass(chunk, plain)

    def next_pass(self, chunk: int, plain: bool) -> list[PlannedStep]:
        decoding = [s for s in self.prompts if self.decoding(s)]
        ready = [s for s in self.prompts if self.ready(s)]
        parts = {lane: self.parts(lane) for lane in "ab"}
        decode_parts = {lane: self.parts(lane, decodes=True) for lane in "ab"}
        steps = self.schedule.next_pass(chunk, plain=plain)
        decodes = [s.session for s in steps if not s.prefill]
        prompts = [s.session for s in steps if s.prefill]

        # Bounds: rows, tokens, and parts of passes under way to each replica.
        tokens = sum(len(s.token_ids) for s in steps if s.prefill)
        assert tokens <= min(self.budget, chunk if decoding else self.budget)
        assert len(steps) <= self.max_rows
        assert len({s.session for s in steps}) == len(steps)
        for session in decodes:
            assert decode_parts[self.lane[session]] < self.depth
        for session in prompts:
            assert parts[self.lane[session]] < self.depth + (not decoding)

        # A decode step waits only for rows or for its replica, never for a prompt.
        fair = min(self.max_rows - 1, math.ceil(len(decoding) / self.depth))
        may = [s for s in ready if s in decoding and decode_parts[self.lane[s]] < self.depth]
        assert len(decodes) == min(fair, len(may))
        # A prompt waits only for its replica, or for a pass that is to be measured.
        waiting = [
            s for s in ready if s not in decoding and parts[self.lane[s]] < self.depth + (not decoding)
        ]
        if waiting and not (plain and decodes):
            assert prompts
        for session in may:
            self.passed_over[session] = 0 if session in decodes else self.passed_over[session] + 1
        for session in waiting if prompts else ():
            self.passed_over[session] = 0 if session in prompts else self.passed_over[session] + 1
        assert max(self.passed_over.values(), default=0) <= len(self.sent), "somebody starves"

        if steps:
            self.passes += 1
        for s in steps:
            # Each token once and in order.
            assert s.position == self.sent[s.session]
            assert s.first == (s.position == 0)
            if s.prefill:
                assert s.token_ids == tuple(range(s.position, s.position + len(s.token_ids)))
            else:
                assert s.token_ids == (1000 + self.chosen[s.session],)
            self.sent[s.session] += len(s.token_ids)
            assert s.sample == (self.sent[s.session] >= self.prompts[s.session])
            self.under_way[s.session].append((self.passes, s))
            if not s.prefill:
                self.decode_passes[self.lane[s.session]].add(self.passes)
        return steps

    @precondition(lambda self: any(self.under_way.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(s for s, steps in self.under_way.items() if steps)))
        self.come_through(session)

    def come_through(self, session: int) -> None:
        number, step = self.under_way[session].popleft()
        lane = self.lane[session]
        whole = all(
            number != other
            for s, steps in self.under_way.items()
            if self.lane[s] == lane
            for other, _ in steps
        )
        flight: Flight | None
        if not step.sample:
            flight = self.schedule.answered(session)
        else:
            self.chosen[session] += 1
            if self.chosen[session] == NEW:
                self.leave(session)
                return
            flight = self.schedule.token(session, 1000 + self.chosen[session])
        assert (flight is not None) == whole, "what is measured is a whole part of a pass"

    @precondition(lambda self: bool(self.prompts))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.prompts))))

    def leave(self, session: int) -> None:
        self.schedule.remove(session)
        self.under_way.pop(session, None)
        self.prompts.pop(session)
        self.passed_over.pop(session, None)

    @invariant()
    def holds_what_it_was_given(self) -> None:
        if hasattr(self, "schedule"):
            assert len(self.schedule) == len(self.prompts)

    def teardown(self) -> None:
        """Everybody gets every token, however long the queue."""
        if not hasattr(self, "schedule"):
            return
        while self.prompts:
            moved = bool(self.next_pass(7, plain=False))
            for session in [s for s, steps in self.under_way.items() if steps][:2]:
                self.come_through(session)
                moved = True
            assert moved, "nothing is ready and nothing is under way"
        assert "passes=0" in repr(self.schedule)


Batching.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBatching = Batching.TestCase


def run(steps: list[PlannedStep]) -> list[tuple[int, int, bool]]:
    return [(s.session, len(s.token_ids), s.sample) for s in steps]


def test_decode_steps_go_before_a_long_prompt_and_share_the_pass() -> None:
    schedule = Schedule(depth=1)
    schedule.add(1, [5])
    assert run(schedule.next_pass(7)) == [(1, 1, True)]
    schedule.token(1, 9)
    schedule.add(2, list(range(20)))
    assert run(schedule.next_pass(7)) == [(1, 1, True), (2, 7, False)]


def test_a_chunk_rides_with_every_pass_so_that_they_take_about_as_long() -> None:
    schedule = Schedule(depth=2)
    for session in range(8):
        schedule.add(session, [1])
    assert [len(schedule.next_pass(7)) for _ in range(3)] == [4, 4, 0]
    for session in range(8):
        schedule.token(session, 1)
    schedule.add(9, list(range(100)))
    passes = [run(schedule.next_pass(7)) for _ in range(3)]
    assert [len(steps) for steps in passes] == [5, 5, 0]
    assert [steps[-1] for steps in passes[:2]] == [(9, 7, False)] * 2


def test_a_pass_to_be_measured_has_no_chunk() -> None:
    schedule = Schedule(depth=2)
    schedule.add(1, [1])
    schedule.next_pass(7)
    schedule.token(1, 1)
    schedule.add(2, list(range(100)))
    assert run(schedule.next_pass(7, plain=True)) == [(1, 1, True)]
    assert run(schedule.next_pass(7, plain=True)) == [(2, 7, False)]


def test_alone_a_long_prompt_is_cut_for_the_stages_to_overlap_and_short_ones_stay_together() -> None:
    schedule = Schedule(depth=2)
    schedule.add(1, list(range(2000)))
    assert [run(schedule.next_pass(7)) for _ in range(4)] == [
        [(1, 250, False)],
        [(1, 219, False)],
        [(1, 192, False)],
        [],
    ]
    together = Schedule(depth=2)
    for session in range(8):
        together.add(session, [1] * 64)
    assert [len(together.next_pass(7)) for _ in range(3)] == [4, 4, 0]
    single = Schedule(depth=1)
    single.add(1, list(range(2000)))
    assert run(single.next_pass(7)) == [(1, 512, False)]


def test_tokens_of_a_pass_under_way_are_still_waited_for() -> None:
    schedule = Schedule(depth=1, token_budget=512)
    schedule.add(1, list(range(600)))
    assert schedule.prompt_tokens == 600
    schedule.next_pass(7)
    assert schedule.prompt_tokens == 600, "who comes now waits for all of them"
    schedule.answered(1)
    assert schedule.prompt_tokens == 88
    schedule.next_pass(7)
    schedule.token(1, 5)
    schedule.next_pass(7)
    assert schedule.prompt_tokens == 0, "a decode step is none"


def test_prompts_take_turns() -> None:
    schedule = Schedule(depth=1)
    schedule.add(1, [1])
    schedule.next_pass(7)
    schedule.add(2, list(range(100)))
    schedule.add(3, list(range(100)))
    turns = []
    for _ in range(4):
        schedule.token(1, 1)
        (_, step) = schedule.next_pass(7)
        turns.append(step.session)
        schedule.answered(step.session)
    assert turns == [2, 3, 2, 3]


def test_a_replica_that_does_not_answer_holds_up_its_own_sessions_only() -> None:
    schedule = Schedule(depth=2)
    for session in range(4):
        schedule.add(session, [1], lane="stuck" if session % 2 else "quick")
    for _ in range(2):
        for step in schedule.next_pass(7):
            if not step.session % 2:
                schedule.token(step.session, 1)
    for session in (4, 5, 6):
        schedule.add(session, [1] * 10, lane="stuck")
    for _ in range(20):
        steps = schedule.next_pass(7)
        assert steps
        for step in steps:
            assert not step.session % 2
            schedule.token(step.session, 1)


def test_a_removed_session_is_never_planned_again() -> None:
    schedule = Schedule(depth=1)
    schedule.add(1, [1])
    schedule.next_pass(7)
    schedule.remove(1)
    assert schedule.token(1, 5) is None
    assert schedule.next_pass(7) == []


@pytest.mark.parametrize("together", [1, 2, 3])
def test_so_many_micro_batches_decode_at_once(together: int) -> None:
    schedule = Schedule(depth=3)
    for session in range(6):
        schedule.add(session, [1])
    while schedule.next_pass(7):
        pass
    assert (schedule.decoding, schedule.prompts) == (0, 6)
    for session in range(6):
        schedule.token(session, 1)
    assert (schedule.decoding, schedule.prompts) == (6, 0)
    passes = []
    while steps := schedule.next_pass(7, together=together):
        passes.append(len(steps))
    assert passes == [6 // together] * together
    schedule.remove(0)
    schedule.remove(0)
    assert (schedule.decoding, schedule.prompts) == (5, 0)


def test_a_pass_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="room"):
        Schedule(depth=1, max_rows=1)
