"""Properties of continuous batching: nothing lost, nothing twice, everything in order, within the budget."""

from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.schedule import Schedule


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    depth=st.integers(1, 4),
    budget=st.integers(1, 30),
    max_rows=st.integers(1, 8),
    data=st.data(),
)
def test_every_token_goes_through_once_and_in_order(
    prompts: list[int], depth: int, budget: int, max_rows: int, data: st.DataObject
) -> None:
    new = 3
    schedule = Schedule(depth, budget, max_rows)
    for session, length in enumerate(prompts):
        schedule.add(session, list(range(length)))
    seen: dict[int, int] = dict.fromkeys(range(len(prompts)), 0)
    chosen: dict[int, int] = dict.fromkeys(range(len(prompts)), 0)
    waiting: list[int] = []
    for _ in range(10_000):
        steps = schedule.next_pass()
        assert sum(len(s.token_ids) for s in steps) <= budget
        assert len(steps) <= max_rows
        assert len({s.session for s in steps}) == len(steps)
        for s in steps:
            assert s.position == seen[s.session]
            seen[s.session] += len(s.token_ids)
            assert s.sample == (seen[s.session] >= prompts[s.session])
            if s.sample:
                waiting.append(s.session)
        if not steps and not waiting:
            break
        if waiting and (not steps or data.draw(st.booleans())):
            session = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            chosen[session] += 1
            if chosen[session] == new:
                schedule.remove(session)
            else:
                schedule.token(session, 7)
    assert len(schedule) == 0
    assert chosen == dict.fromkeys(chosen, new)
    assert seen == {s: length + new - 1 for s, length in enumerate(prompts)}


def test_decode_steps_go_before_a_long_prompt_and_share_the_pass() -> None:
    schedule = Schedule(depth=1, token_budget=8)
    schedule.add(1, [5])
    assert [s.session for s in schedule.next_pass()] == [1]
    schedule.add(2, list(range(20)))
    schedule.token(1, 9)
    steps = schedule.next_pass()
    assert [(s.session, len(s.token_ids), s.sample) for s in steps] == [(1, 1, True), (2, 7, False)]


def test_sessions_spread_over_as_many_micro_batches_as_stages() -> None:
    schedule = Schedule(depth=2)
    for session in range(8):
        schedule.add(session, [1])
    assert [len(schedule.next_pass()) for _ in range(3)] == [4, 4, 0]


def test_a_removed_session_is_never_planned_again() -> None:
    schedule = Schedule(depth=1)
    schedule.add(1, [1])
    schedule.next_pass()
    schedule.remove(1)
    schedule.token(1, 5)
    assert schedule.next_pass() == []
