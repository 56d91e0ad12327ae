import pytest

from bench.head import HeadForward, busy


def test_only_micro_batches_answered_in_the_time_count_and_the_less_busy_stage_decides() -> None:
    answers = [HeadForward(0, at, [0.5, 0.9]) for at in (1.0, 2.0, 3.0, 4.0)]
    assert busy(answers, 1.0, 3.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="answered"):
        busy(answers, 4.0, 5.0)
