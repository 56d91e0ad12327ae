"""One request, one trace: what a real OTLP receiver is sent by the whole mesh."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1 import inference_pb2, inference_pb2_grpc
from stagemesh.v1.registry_pb2 import Scaling
from tests.library.otlp_receiver import OtlpReceiver, Span

from .traffic import until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

STAGES = ("router.request", "stage 0", "stage 1")
PARTS = {"queue", "compute", "encode", "network"}
PARENT = "00f067aa0ba902b7"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def receiver() -> AsyncIterator[OtlpReceiver]:
    receiver = await OtlpReceiver().start()
    yield receiver
    await receiver.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def traced(llama: Path, receiver: OtlpReceiver) -> AsyncIterator[LocalMesh]:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    async with LocalMesh(
        stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30, env=env
    ) as mesh:
        await mesh.deploy(llama, "llama", timeout_s=120)
        yield mesh


def traceparent(trace_id: str) -> str:
    return f"00-{trace_id}-{PARENT}-01"


async def generate(
    mesh: LocalMesh, trace_id: str, first_token: int, max_tokens: int = 4, model: str = "llama"
) -> None:
    """Through gRPC, as a caller with a trace of its own."""
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        request = inference_pb2.GenerateRequest(model=model)
        request.tokens.ids.extend([first_token, 6, 7])
        request.temperature = 0
        request.max_tokens = max_tokens
        request.ignore_eos = True
        metadata = (("traceparent", traceparent(trace_id)),)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async for _ in stub.Generate(request, metadata=metadata, timeout=30):
            pass


async def spans_of(receiver: OtlpReceiver, trace_id: str, *names: str, within_s: float = 15) -> list[Span]:
    """Every span of the trace, once those of these names are there and nothing more has come for a second."""
    await until(lambda: set(names) <= {span.name for span in receiver.spans(trace_id)}, within_s)
    seen = -1
    while seen != len(receiver.spans(trace_id)):
        seen = len(receiver.spans(trace_id))
        await asyncio.sleep(1)
    return receiver.spans(trace_id)


def ancestors(span: Span, by_id: dict[str, Span]) -> list[Span]:
    """From the parent up; fails on a parent that was never sent."""
    found: list[Span] = []
    while span.parent_id != PARENT:
        assert span.parent_id in by_id, f"{span.name} of {span.service} hangs in the air"
        span = by_id[span.parent_id]
        found.append(span)
    return found


async def test_one_trace_through_router_cache_and_both_stages(
    traced: LocalMesh, receiver: OtlpReceiver
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    await generate(traced, trace_id, first_token=5)
    spans = await spans_of(receiver, trace_id, *STAGES)
    by_id = {span.span_id: span for span in spans}
    assert {span.service for span in spans} == {"stagemesh-router", "stagemesh-cache", "stagemesh-stage"}
    assert len({span.instance for span in spans if span.service == "stagemesh-stage"}) == 2

    (request,) = [span for span in spans if span.name == "router.request"]
    lineage = {span.span_id: ancestors(span, by_id) for span in spans}
    for name in ("router.tokenize", "cache.lookup", "router.route"):
        (span,) = [span for span in spans if span.name == name]
        assert span.parent_id == request.span_id
    assert [span for span in spans if span.service == "stagemesh-cache"]
    for span in spans:
        if span.service != "stagemesh-router":
            assert request in lineage[span.span_id], span

    for stage in (0, 1):
        (span,) = [span for span in spans if span.name == f"stage {stage}"]
        assert span.service == "stagemesh-stage"
        assert span.attributes["stagemesh.stage"] == stage
        parts = [child for child in spans if child.parent_id == span.span_id]
        assert {child.name for child in parts} == PARTS
        # A pass for the prompt and one for each token after the first.
        assert span.attributes["stagemesh.passes"] == 4
        assert len(parts) == 2 * len(PARTS)
        for child in parts:
            assert span.instance == child.instance
            assert child.start_ns <= child.end_ns <= span.end_ns
        assert request.start_ns <= span.start_ns
    assert not any(span.error for span in spans)


async def test_every_pass_is_listed_and_the_first_ones_have_spans(
    traced: LocalMesh, receiver: OtlpReceiver
) -> None:
    trace_id = "5bf92f3577b34da6a3ce929d0e0e4737"
    await generate(traced, trace_id, first_token=50, max_tokens=40)
    spans = await spans_of(receiver, trace_id, *STAGES)
    for stage in (0, 1):
        (span,) = [span for span in spans if span.name == f"stage {stage}"]
        assert [(name, each["stagemesh.pass"]) for name, _, each in span.events] == [
            ("passes", 0),
            ("passes", 32),
        ]
        assert all(span.start_ns <= at <= span.end_ns for _, at, _ in span.events)
        listed = {
            name: [int(value) for _, _, each in span.events for value in each[f"stagemesh.{name}"].split(",")]
            for name in (*(f"{part}_us" for part in PARTS), "bubble_us", "rows")
        }
        assert {len(values) for values in listed.values()} == {40}
        assert all(us > 0 for us in listed["compute_us"])
        # One session alone: while it is on the other stage, this one has nothing to compute.
        assert all(us > 0 for us in listed["bubble_us"][1:])
        assert listed.pop("rows") == [3, *[1] * 39]
        for name, values in listed.items():
            assert span.attributes[f"stagemesh.{name}"] == sum(values)
        assert sum(child.parent_id == span.span_id for child in spans) == 2 * len(PARTS)


async def test_requests_have_traces_of_their_own(traced: LocalMesh, receiver: OtlpReceiver) -> None:
    """The stages' long-lived streams must not tie a request to the one that opened them."""
    ids = [f"{index:032x}" for index in (1, 2)]
    for index, trace_id in enumerate(ids):
        await generate(traced, trace_id, first_token=100 + index)
    for trace_id in ids:
        spans = await spans_of(receiver, trace_id, *STAGES)
        assert sum(span.name == "router.request" for span in spans) == 1
        assert sum(span.name.startswith("stage ") for span in spans) == 2


async def test_a_trace_comes_in_over_http(traced: LocalMesh, receiver: OtlpReceiver) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with httpx.AsyncClient(base_url=f"http://{traced.http_address}", timeout=30) as http:
        body = {"model": "llama", "prompt": "over http", "max_tokens": 3, "temperature": 0}
        answer = await http.post("/v1/completions", json=body, headers={"traceparent": traceparent(trace_id)})
        assert answer.status_code == 200
    spans = await spans_of(receiver, trace_id, *STAGES)
    by_id = {span.span_id: span for span in spans}
    (request,) = [span for span in spans if span.name == "router.request"]
    names = {span.name for span in spans if request in ancestors(span, by_id)}
    assert names > {
        "stage 0",
        "stage 1",
        "stagemesh.v1.CacheService/Lookup",
        "stagemesh.v1.CacheService/Store",
    }


async def test_an_answer_from_the_cache_has_no_stage_spans(traced: LocalMesh, receiver: OtlpReceiver) -> None:
    trace_id = "c" * 32
    for answered in ("d" * 32, trace_id):
        await generate(traced, answered, first_token=200)
        await spans_of(receiver, answered, "router.request")
    spans = receiver.spans(trace_id)
    (lookup,) = [span for span in spans if span.name == "cache.lookup"]
    assert lookup.attributes["stagemesh.cache"] == "hit"
    assert {span.service for span in spans} == {"stagemesh-router", "stagemesh-cache"}


async def test_waking_a_model_is_part_of_the_trace_of_the_request_that_woke_it(
    traced: LocalMesh, receiver: OtlpReceiver, llama: Path
) -> None:
    scaling = Scaling(min_replicas=0, max_replicas=1, idle_s=1)
    await traced.deploy(llama, "sleepy", stages=2, cache=False, scaling=scaling, timeout_s=120)
    async with traced.client() as client:
        async with asyncio.timeout(60):
            while True:
                status = await client.status()
                asleep = any(model.spec.name == "sleepy" and model.asleep for model in status.models)
                if asleep and not any(replica.record.model == "sleepy" for replica in status.replicas):
                    break
                await asyncio.sleep(0.1)
    trace_id = "5bf92f3577b34da6a3ce929d0e0e4737"
    await generate(traced, trace_id, first_token=5, model="sleepy")
    spans = await spans_of(receiver, trace_id, *STAGES, "router.hold", "stage.load")
    by_id = {span.span_id: span for span in spans}
    (held,) = [span for span in spans if span.name == "router.hold"]
    assert by_id[held.parent_id].name == "router.request"
    (woken,) = [
        span for span in spans if span.name.endswith("RegistryService/Wake") and span.service == "registry"
    ]
    loads = [span for span in spans if span.name == "stage.load"]
    assert {span.attributes["stagemesh.stage"] for span in loads} == {0, 1}
    for span in loads:
        assert span.service == "stagemesh-stage"
        assert ancestors(span, by_id)[0] == woken
        assert held in ancestors(span, by_id)
    await deployment.undeploy(traced.registry_address, "sleepy")
