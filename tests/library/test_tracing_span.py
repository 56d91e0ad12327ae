"""Live spans as a real OTLP receiver gets them: what may be told of one, and when nothing is."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from stagemesh import tracing
from tests.library.test_tracing_export import PARENT, TRACE, inside, receiver  # noqa: F401 (a fixture)


async def ended(receiver) -> dict:  # noqa: F811
    await tracing.shutdown_tracing()
    return {span.name: span for span in receiver.spans()}


@pytest.fixture
def tracer(receiver):  # noqa: F811
    tracing.setup_tracing("router", "r1")
    return tracing.tracer()


async def test_attributes_of_every_kind_arrive_as_what_they_are(receiver, tracer):  # noqa: F811
    span = tracer.start_span("work", inside(), trace.SpanKind.CLIENT, {"at start": True})
    span.set_attribute("text", "ä")
    span.set_attributes({"count": -3, "share": 0.5, "reasons": ["a", "b"], "other": {1}})
    span.set_attribute("count", 4)
    span.update_name("renamed")
    span.end()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.end()
    (made,) = (await ended(receiver)).values()
    assert (made.name, made.kind, made.trace_id, made.parent_id) == ("renamed", 3, TRACE, PARENT)
    assert made.attributes == {
        "at start": True,
        "text": "ä",
        "count": 4,
        "share": 0.5,
        "reasons": ["a", "b"],
        "other": "{1}",
    }
    assert 0 < made.start_ns <= made.end_ns
    assert not made.error
    assert not made.events


async def test_only_an_error_is_a_status(receiver, tracer):  # noqa: F811
    tracer_spans = [tracer.start_span(name, inside()) for name in ("ok", "code", "status")]
    tracer_spans[0].set_status(StatusCode.OK)
    tracer_spans[1].set_status(StatusCode.ERROR)
    tracer_spans[2].set_status(Status(StatusCode.ERROR, "it broke"))
    for span in tracer_spans:
        span.end()
    made = await ended(receiver)
    assert [made[name].error for name in ("ok", "code", "status")] == [False, True, True]


async def test_the_current_span_is_the_parent_and_ends_with_its_body(receiver, tracer):  # noqa: F811
    with tracer.start_as_current_span("outer", context=Context()) as outer:
        with tracer.start_as_current_span("inner"):
            (header,) = [value for key, value in tracing.inject() if key == "traceparent"]
        tracer.start_span("sibling").end()
    assert not trace.get_current_span().get_span_context().is_valid
    assert not outer.is_recording()
    made = await ended(receiver)
    assert made["outer"].parent_id == ""
    assert made["inner"].parent_id == made["sibling"].parent_id == made["outer"].span_id
    assert header == f"00-{made['outer'].trace_id}-{made['inner'].span_id}-01"


@pytest.mark.parametrize(("told", "failed"), [(True, True), (False, False)])
async def test_an_exception_in_the_body_is_told_if_wanted(receiver, tracer, told, failed):  # noqa: F811
    with (
        pytest.raises(KeyError),
        tracer.start_as_current_span(
            "work", context=inside(), record_exception=told, set_status_on_exception=told
        ),
    ):
        raise KeyError("gone")
    work = (await ended(receiver))["work"]
    assert work.error is failed
    assert [(name, each["exception.type"]) for name, _, each in work.events] == [
        ("exception", "KeyError")
    ] * told
    assert all("KeyError: 'gone'" in each["exception.stacktrace"] for _, _, each in work.events)


async def test_a_cancelled_body_is_no_error(receiver, tracer):  # noqa: F811
    with pytest.raises(asyncio.CancelledError), tracer.start_as_current_span("work", context=inside()):
        raise asyncio.CancelledError
    work = (await ended(receiver))["work"]
    assert not work.error
    assert not work.events


async def test_what_is_not_sampled_only_carries_its_ids_on(receiver, tracer):  # noqa: F811
    with tracer.start_as_current_span("work", context=inside(sampled=False)) as span:
        assert not span.is_recording()
        (header,) = [value for key, value in tracing.inject() if key == "traceparent"]
    assert header.startswith(f"00-{TRACE}-")
    assert header.endswith("-00")
    assert PARENT not in header
    assert await ended(receiver) == {}


async def test_who_samples_no_more_of_a_sampled_trace_says_so_to_the_next(receiver, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing.setup_tracing("router", "r1")
    with tracing.tracer().start_as_current_span("work", context=inside()):
        (header,) = [value for key, value in tracing.inject() if key == "traceparent"]
    assert header.endswith("-00")
    assert await ended(receiver) == {}


@pytest.mark.parametrize("told", ["", "7"])
async def test_events_of_one_span_are_bounded(receiver, monkeypatch, told):  # noqa: F811
    if told:
        monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", told)
    most = int(told or 128)
    tracing.setup_tracing("router", "r1")
    span = tracing.tracer().start_span("work", inside())
    for index in range(most + 5):
        span.add_event("moved", {"index": index}, timestamp=index + 1)
    assert len(span._events) == most
    span.end()
    work = (await ended(receiver))["work"]
    assert [each["index"] for _, _, each in work.events] == list(range(most))
    assert [at for _, at, _ in work.events] == list(range(1, most + 1))
    assert work.dropped_events == 5
