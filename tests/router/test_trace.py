"""One request, one trace: the spans of the router and what reaches the head."""

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stagemesh import tracing
from stagemesh.tracing_span import Tracer

from .test_core_generate import answer, ask


@pytest.fixture
def spans(monkeypatch):
    """The last span of each name that is over."""
    provider = TracerProvider()
    over = {}

    def put(context, parent, describe):
        told = describe()
        over[told.name] = SimpleNamespace(
            context=context, parent=parent, attributes=told.attributes, error=told.error
        )

    monkeypatch.setattr(tracing, "_provider", provider)
    monkeypatch.setattr(tracing, "_tracer", Tracer(provider.sampler, provider.id_generator, put))
    return lambda: over


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
    assert spans()["router.request"].error == "INTERNAL"
    assert spans()["router.request"].attributes["error.type"] == "INTERNAL"
    with pytest.raises(Exception, match="max_tokens"):
        await answer(core, ask(max_tokens=0))
    assert spans()["router.request"].error is None
