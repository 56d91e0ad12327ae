"""Parts of a token's time, from streams whose times are known."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.client import StageTime
from stagemesh.pipeline_model import predict
from stagemesh.token_time import Load, Stream, calibrate, load_of, rate_of, waking

MS = 1e-3


def told(stage: int, steps: int, each: tuple[float, float, float, float], prompt: float = 0.0) -> StageTime:
    """What a stage tells after a prompt and so many steps of `each` (queue, compute, encode, network), rows 2."""
    queue, compute, encode, network = (value * steps for value in each)
    return StageTime(
        stage,
        f"r{stage}",
        1 + steps,
        queue,
        prompt + compute,
        encode,
        network,
        steps * 0.5 * MS,
        4 + 2 * steps,
    )


def stream(tokens: int, gap: float, started: float = 0.0, together: int = 1) -> Stream:
    """A prompt of 50 ms, then tokens at equal times; two stages."""
    parts = ((0.1 * MS, 2 * MS, 0.0, 0.0), (0.2 * MS, 3 * MS, 0.1 * MS, 0.3 * MS))
    times = [started + 0.1 + max(0, index - together + 1) * gap for index in range(tokens)]
    return Stream(
        started,
        tuple(times),
        together,
        tuple(told(stage, together - 1, part, 50 * MS) for stage, part in enumerate(parts)),
        tuple(told(stage, tokens - 1, part, 50 * MS) for stage, part in enumerate(parts)),
    )


@pytest.mark.parametrize("together", [1, 3])
def test_the_parts_leave_the_prompt_out_and_add_up(together: int) -> None:
    load = load_of([[stream(11, 7 * MS, together=together)] * 4])
    assert load.step_s == pytest.approx(7 * MS)
    first, last = load.stages
    assert (first.compute_s, first.queue_s) == (pytest.approx(2 * MS), pytest.approx(0.1 * MS))
    assert last.path_s == pytest.approx(3.6 * MS)
    assert load.rest_s == pytest.approx(1.3 * MS)
    assert sum(part.path_s for part in load.stages) + load.rest_s == pytest.approx(load.step_s)
    assert load.first_token_s == pytest.approx([0.1] * 4)
    # Four streams, two rows a pass: two passes between two tokens, a bubble before each.
    assert first.rows == pytest.approx(2)
    assert first.idle_s == pytest.approx(1 * MS)
    assert first.replicas == 1


def test_replicas_share_the_passes_and_the_bubbles() -> None:
    ours = stream(11, 7 * MS)
    other = replace(ours, last=tuple(replace(time, replica_id="other") for time in ours.last))
    (first, _) = load_of([[ours, ours, other, other]]).stages
    assert first.replicas == 2
    assert first.idle_s == pytest.approx(0.5 * MS)


def test_the_rate_counts_only_while_all_decode() -> None:
    early, late = stream(101, 10 * MS), stream(101, 10 * MS, started=0.5)
    assert rate_of([early, late]) == pytest.approx(200, rel=0.05)
    # They never decode together: all tokens over all of the time.
    apart = stream(11, 10 * MS, started=3)
    assert rate_of([stream(11, 10 * MS), apart]) == pytest.approx(21 / 3.1, rel=0.01)


def test_rounds_are_kept_apart() -> None:
    load = load_of([[stream(11, 10 * MS)], [stream(11, 20 * MS)], [stream(11, 5 * MS)]])
    assert load.rates == pytest.approx((100, 50, 200))
    assert load.rate == pytest.approx(100)
    assert load.streams == 1


@pytest.mark.parametrize("tokens", [1, 3])
def test_too_few_tokens_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="too few tokens"):
        load_of([[stream(tokens, MS, together=tokens)]])


def test_a_mesh_that_tells_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage said"):
        load_of([[replace(stream(5, MS), first=(), last=())]])


def test_one_stream_is_predicted_as_it_was_measured() -> None:
    load = load_of([[stream(11, 7 * MS)]])
    costs = calibrate([load])
    assert waking([load]) == pytest.approx(0.3 * MS)
    assert predict(costs, 1).step_s == pytest.approx(load.step_s)
    # On: network and waking of stage 1. Then what stage 1 encodes, the rest, and waking stage 0.
    assert [cost.hop_s for cost in costs] == [pytest.approx(0.5 * MS), pytest.approx(1.5 * MS)]


@given(st.integers(3, 16), st.floats(0, 0.9))
def test_two_loads_give_a_line_and_queueing_is_left_to_the_model(rows: int, row_ms: float) -> None:
    one = load_of([[stream(11, 7 * MS)]])
    slower = [
        replace(part, rows=float(rows), compute_s=part.compute_s + (rows - 2) * row_ms * MS, queue_s=99.0)
        for part in one.stages
    ]
    many = Load(2 * rows, (1.0,), (1.0,), (1.0,), 200.0, tuple(slower))
    costs = calibrate([many, one])
    for cost, part in zip(costs, slower, strict=True):
        assert cost.pass_s(rows) == pytest.approx(part.compute_s, rel=0.02)
    assert sum(cost.hop_s for cost in costs) == pytest.approx(2 * MS)


def test_without_a_single_stream_queueing_is_no_hop() -> None:
    many = replace(load_of([[stream(11, 7 * MS)]]), streams=4)
    assert waking([many]) == 0
    assert sum(cost.hop_s for cost in calibrate([many])) == pytest.approx(1.7 * MS)
    with pytest.raises(ValueError, match="nothing was measured"):
        calibrate([])
