import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.streams import Stream, decode_rate, stall


def steady(start: float, gap: float, count: int) -> Stream:
    made = Stream()
    for index in range(count):
        made.add([index], start + gap * index)
    return made


@given(st.integers(1, 16), st.integers(3, 64), st.floats(0.001, 1))
def test_streams_in_step_give_their_sum(streams: int, count: int, gap: float) -> None:
    rate = decode_rate([steady(5.0, gap, count) for _ in range(streams)])
    assert rate == pytest.approx(streams / gap, rel=1e-6)


def test_only_the_time_when_all_decode_counts() -> None:
    early, late = steady(0.0, 1.0, 10), steady(5.5, 1.0, 10)
    # From 5.5 to 9.0: four tokens of the early stream, three of the late one.
    assert decode_rate([early, late]) == pytest.approx(7 / 3.5)


def test_streams_that_never_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="never decoded"):
        decode_rate([steady(0.0, 1.0, 3), steady(10.0, 1.0, 3)])


def test_a_stall_is_seen_where_it_happens() -> None:
    one = Stream()
    for at in (0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0):
        one.add([1], at)
    before, during = stall([one], sent=3.5, answered=7.5)
    assert (before, during) == (1.0, 5.0)


def test_gaps_before_all_streams_run_do_not_count_as_calm() -> None:
    slow_start = Stream([1, 1, 1, 1], [0.0, 6.0, 7.0, 8.0])
    other = Stream([1, 1, 1, 1], [5.9, 6.9, 7.9, 8.9])
    before, _ = stall([slow_start, other], sent=8.0, answered=8.5)
    assert before == pytest.approx(1.0)


def test_nothing_before_or_during_is_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        stall([steady(0.0, 1.0, 4)], sent=10.0, answered=11.0)


def test_tokens_that_come_together_share_a_time() -> None:
    one = Stream()
    one.add([4, 5], 1.5)
    assert (one.tokens, one.times) == ([4, 5], [1.5, 1.5])
