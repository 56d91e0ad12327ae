"""Spans of work that is over, made only when they are exported, at a real OTLP receiver."""

import threading

import pytest
from opentelemetry import trace
from opentelemetry.context import Context

from stagemesh import tracing
from stagemesh.errors import ConfigError
from stagemesh.tracing_span import Finished
from tests.library.otlp_receiver import OtlpReceiver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER = trace.SpanKind.SERVER


@pytest.fixture
async def receiver(monkeypatch):
    receiver = await OtlpReceiver().start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    yield receiver
    await tracing.shutdown_tracing()
    await receiver.stop()


def inside(sampled: bool = True) -> Context:
    return tracing.extract((("traceparent", f"00-{TRACE}-{PARENT}-{sampled:02x}"),))


def described(name: str = "work", **more) -> Finished:
    return Finished(name, 1_000, 5_000, {"size": 3, "model": "m"}, SERVER, **more)


async def test_a_span_with_events_and_spans_below_it(receiver):
    tracing.setup_tracing("stage", "n1")
    threads = []

    def describe() -> Finished:
        threads.append(threading.current_thread())
        below = Finished("part", 2_000, 3_000, {"stagemesh.pass": 1}, children=[Finished("deep", 2, 3, {})])
        return described(events=[("passes", {"times": "1,2"}, 4_000)], children=[below, below])

    tracing.finished(inside(), "work", SERVER, describe)
    await tracing.shutdown_tracing()
    assert threads[0] is not threading.current_thread(), "the loop has better things to do"
    (work,) = [span for span in receiver.spans() if span.name == "work"]
    assert (work.trace_id, work.parent_id, work.kind, work.error) == (TRACE, PARENT, 2, False)
    assert (work.start_ns, work.end_ns) == (1_000, 5_000)
    assert (work.service, work.instance) == ("stage", "n1")
    assert work.attributes == {"size": 3, "model": "m"}
    assert work.events == [("passes", 4_000, {"times": "1,2"})]
    parts = [span for span in receiver.spans() if span.name == "part"]
    assert [(part.parent_id, part.kind, part.attributes) for part in parts] == [
        (work.span_id, 1, {"stagemesh.pass": 1})
    ] * 2
    deep = [span for span in receiver.spans() if span.name == "deep"]
    assert {span.parent_id for span in deep} == {part.span_id for part in parts}
    ids = [span.span_id for span in receiver.spans()]
    assert len(set(ids)) == len(ids) == 5
    assert {span.trace_id for span in receiver.spans()} == {TRACE}


async def test_beside_spans_that_were_made_while_the_work_ran(receiver):
    tracing.setup_tracing("stage", "n1")
    with tracing.tracer().start_as_current_span("live", context=inside()) as live:
        tracing.finished(trace.set_span_in_context(live), "work", SERVER, described)
    await tracing.shutdown_tracing()
    by_name = {span.name: span for span in receiver.spans()}
    assert by_name["work"].parent_id == by_name["live"].span_id
    assert by_name["live"].service == by_name["work"].service == "stage"
    assert receiver.messages == [2]


async def test_an_error_is_said(receiver):
    tracing.setup_tracing("stage", "n1")
    tracing.finished(inside(), "work", SERVER, lambda: described(error="it broke"))
    await tracing.shutdown_tracing()
    assert [span.error for span in receiver.spans()] == [True]


async def test_without_a_caller_it_is_a_trace_of_its_own(receiver):
    tracing.setup_tracing("stage", "n1")
    tracing.finished(Context(), "work", SERVER, described)
    tracing.finished(Context(), "work", SERVER, described)
    await tracing.shutdown_tracing()
    assert [span.parent_id for span in receiver.spans()] == ["", ""]
    assert len({span.trace_id for span in receiver.spans()}) == 2


async def test_nothing_of_a_trace_that_is_not_sampled(receiver):
    tracing.setup_tracing("stage", "n1")
    tracing.finished(inside(sampled=False), "work", SERVER, lambda: pytest.fail("described"))
    await tracing.shutdown_tracing()
    assert receiver.spans() == []


async def test_the_process_s_own_sampler_is_asked(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing.setup_tracing("stage", "n1")
    tracing.finished(inside(), "work", SERVER, described)
    await tracing.shutdown_tracing()
    assert receiver.spans() == []


async def test_nothing_while_tracing_is_off(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing.setup_tracing("stage", "n1")
    tracing.finished(Context(), "work", SERVER, lambda: pytest.fail("described"))


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: described(children=[described(), None])])
async def test_one_that_cannot_be_described_takes_no_other_with_it(receiver, caplog, bad):
    tracing.setup_tracing("stage", "n1")
    tracing.finished(inside(), "bad", SERVER, bad)
    tracing.finished(inside(), "work", SERVER, described)
    await tracing.shutdown_tracing()
    assert [span.name for span in receiver.spans()] == ["work"]
    assert "tracing.span_lost" in caplog.text


async def test_messages_stay_small(receiver, monkeypatch):
    """A receiver refuses more than 4 MiB: 500 long sessions in one message would be."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    tracing.setup_tracing("stage", "n1")
    events = [("passes", {f"times{n}": "1234," * 32 for n in range(6)}, at) for at in range(16)]
    children = [Finished("part", 1, 2, {})] * 8
    for index in range(500):
        name = f"work {index}"
        tracing.finished(
            inside(), name, SERVER, lambda name=name: described(name, events=events, children=children)
        )
    await tracing.shutdown_tracing()
    assert sum(receiver.messages) == 500 * 9
    assert max(receiver.messages) <= 128 * 9
    assert {span.name for span in receiver.spans()} == {"part", *(f"work {index}" for index in range(500))}


async def test_what_one_span_may_hold_is_the_operators_choice(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3")
    monkeypatch.setenv("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "4")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    tracing.setup_tracing("stage", "n1")
    below = Finished("part", 2, 3, {str(number): number for number in range(5)})
    spoken = {"text": "a long one", "texts": ["short", "s"], "number": 1_234_567, "one more": 1}
    events = [("said", {"text": "a long one", "number": 7}, at) for at in range(1, 6)]
    finished = Finished("work", 1, 5, spoken, SERVER, events=events, dropped_events=10, children=[below])
    tracing.finished(inside(), "work", SERVER, lambda: finished)
    await tracing.shutdown_tracing()
    by_name = {span.name: span for span in receiver.spans()}
    work = by_name["work"]
    assert work.attributes == {"text": "a lo", "texts": ["shor", "s"], "number": 1_234_567}
    assert work.events == [("said", at, {"text": "a lon"}) for at in (1, 2)]
    assert work.dropped_events == 13
    assert work.dropped_attributes == (1, 1, 1)
    assert by_name["part"].attributes == {"0": 0, "1": 1, "2": 2}
    assert by_name["part"].dropped_attributes == (2,)


async def test_a_span_may_hold_as_much_as_the_specification_says(receiver):
    tracing.setup_tracing("stage", "n1")
    spoken = {str(number): "x" * 10_000 for number in range(130)}
    tracing.finished(inside(), "work", SERVER, lambda: Finished("work", 1, 5, spoken, SERVER))
    await tracing.shutdown_tracing()
    (work,) = receiver.spans()
    assert list(work.attributes) == [str(number) for number in range(128)]
    assert {len(value) for value in work.attributes.values()} == {10_000}
    assert work.dropped_attributes == (2,)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "many", "OTEL_SPAN_EVENT_COUNT_LIMIT must be .*many"),
        ("OTEL_BSP_SCHEDULE_DELAY", "many", "OTEL_BSP_SCHEDULE_DELAY must be .*many"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "schedule_delay_millis"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "long", "OTEL_.*long"),
    ],
)
async def test_a_variable_that_cannot_be_obeyed_is_an_error_of_the_configuration(
    receiver, monkeypatch, name, value, said
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        tracing.setup_tracing("stage", "n1")
    assert not tracing.enabled()
