"""Passes are counted without Prometheus' own histogram: what a scrape sees must be the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from stagemesh.services.stage.metrics import PARTS, PassTimes, _PassSeconds

from stagemesh.metrics import LATENCY_BUCKETS_S, render
from stagemesh.v1.stage_pb2 import HopRecord

micros = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([int(b * 1e6) + d for b in LATENCY_BUCKETS_S for d in (-1, 0, 1)]),
)


def samples(text: bytes) -> dict[str, float]:
    lines = (line for line in text.decode().splitlines() if line.startswith("stagemesh_stage_pass_seconds"))
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines)
        if "_created" not in name
    }


@given(st.lists(st.lists(micros, min_size=len(PARTS), max_size=len(PARTS)), max_size=20))
def test_a_scrape_sees_what_prometheus_own_histogram_would_show(passes: list[list[int]]) -> None:
    own, theirs = CollectorRegistry(), CollectorRegistry()
    collector = _PassSeconds()
    own.register(collector)
    times = collector.of("m", 1)
    histogram = Histogram(
        "stagemesh_stage_pass_seconds",
        "x",
        ("model", "stage", "part"),
        registry=theirs,
        buckets=LATENCY_BUCKETS_S,
    )
    for part in PARTS:
        histogram.labels("m", "1", part)
    for values in passes:
        times.observe(HopRecord(**{f"{part}_us": us for part, us in zip(PARTS, values, strict=True)}))
        for part, us in zip(PARTS, values, strict=True):
            histogram.labels("m", "1", part).observe(us / 1e6)
    assert samples(generate_latest(own)) == pytest.approx(samples(generate_latest(theirs)), abs=1e-6)


def test_every_part_is_among_the_process_metrics() -> None:
    from stagemesh.services.stage.metrics import pass_times

    assert isinstance(pass_times("seen", 3), PassTimes)
    assert pass_times("seen", 3) is pass_times("seen", 3)
    text = render().decode()
    for part in PARTS:
        assert f'stagemesh_stage_pass_seconds_count{{model="seen",part="{part}",stage="3"}} 0' in text


def test_the_time_of_passes_that_were_computed_as_one_is_counted_once() -> None:
    times = PassTimes("m", 1)
    for queue_us in (10, 20, 30):
        times.observe(HopRecord(queue_us=queue_us, compute_us=900), sharing=3)
    parts = {part: (sum(counts), micros) for part, counts, micros in times.parts()}
    assert parts["compute"] == (3, 900)
    assert parts["queue"] == (3, 60)
