"""One request, one trace: the spans of the router and what reaches the head."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stagemesh import tracing

from .test_core_generate import answer, ask


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


async def test_spans_of_a_generation(mesh, spans, caplog):
    core = await mesh.start({"0a": "good"}, cache="good")
    await answer(core, ask(), {"x-request-id": "r-1"})
    made = spans()
    request = made["router.request"]
    assert request.attributes["gen_ai.request.model"] == "m"
    assert request.attributes["gen_ai.usage.input_tokens"] == 3
    assert request.attributes["gen_ai.usage.output_tokens"] == 4
    assert list(request.attributes["gen_ai.response.finish_reasons"]) == ["length"]
    assert request.attributes["stagemesh.request_id"] == "r-1"
    for name in ("router.tokenize", "cache.lookup", "router.route"):
        assert made[name].parent.span_id == request.context.span_id, name
    assert made["router.route"].attributes["stagemesh.stage.0"] == "0a"
    traceparent = mesh.stages["0a"].metadata[0]["traceparent"]
    assert traceparent.split("-")[1] == format(request.context.trace_id, "032x")
    assert "detach" not in caplog.text


async def test_a_failure_is_marked_and_a_bad_request_is_not(mesh, spans):
    core = await mesh.start({"0a": "bug"})
    with pytest.raises(Exception, match="internal error"):
        await answer(core, ask())
    assert spans()["router.request"].status.status_code.name == "ERROR"
    assert spans()["router.request"].attributes["error.type"] == "INTERNAL"
    with pytest.raises(Exception, match="max_tokens"):
        await answer(core, ask(max_tokens=0))
    assert spans()["router.request"].status.status_code.name == "UNSET"
