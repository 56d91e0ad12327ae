"""Traces through real servers and channels to a real OTLP receiver."""

import asyncio

import grpc
import pytest
from opentelemetry import trace

from stagemesh import errors, tracing
from stagemesh.grpc_server import GrpcServer, create_channel
from tests.library import echo_service
from tests.library.otlp_receiver import OtlpReceiver


@pytest.fixture
async def receiver(monkeypatch):
    receiver = await OtlpReceiver().start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield receiver
    await tracing.shutdown_tracing()
    await receiver.stop()


async def serve():
    server = GrpcServer("127.0.0.1", 0)
    service = echo_service.Echo()
    service.add_to(server.server)
    return server, service, f"127.0.0.1:{await server.start([echo_service.NAME])}"


async def test_off_without_an_endpoint(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing.setup_tracing("router", "r1")
    assert not tracing.enabled()
    with tracing.tracer().start_as_current_span("request") as span:
        assert not span.is_recording()
        assert tracing.inject() == ()
    assert type(create_channel("127.0.0.1:1")).__module__.startswith("grpc")
    await tracing.shutdown_tracing()


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_one_trace_through_a_hop(receiver, method):
    tracing.setup_tracing("router", "r1")
    server, service, address = await serve()
    async with create_channel(address) as channel:
        with tracing.tracer().start_as_current_span("request") as span:
            assert await echo_service.call(channel, method)
            trace_id = format(span.get_span_context().trace_id, "032x")
    await server.stop(0)
    await tracing.shutdown_tracing()
    spans = receiver.spans(trace_id)
    assert service.traces == [trace_id], "the handler ran inside the caller's trace"
    root = next(span for span in spans if span.name == "request")
    assert (root.parent_id, root.service, root.instance) == ("", "router", "r1")
    if method in ("collect", "chat_yield", "chat_write"):
        assert spans == [root]
        return
    client = next(span for span in spans if span.kind == 3)
    service_span = next(span for span in spans if span.kind == 2)
    assert client.name == service_span.name == f"test.Echo/{method}"
    assert client.parent_id == root.span_id
    assert service_span.parent_id == client.span_id
    assert client.start_ns <= service_span.start_ns <= service_span.end_ns
    assert service_span.attributes["rpc.grpc.status_code"] == client.attributes["rpc.grpc.status_code"] == 0
    assert not client.error


@pytest.mark.parametrize("method", ["unary", "stream_yield", "stream_write"])
@pytest.mark.parametrize(
    ("error", "code", "fault"), [(errors.Unavailable("x"), 14, True), (errors.NotFound("x"), 5, False)]
)
async def test_status_of_a_failed_call(receiver, method, error, code, fault):
    tracing.setup_tracing("router", "r1")
    server, service, address = await serve()

    async def action(request: bytes) -> None:
        raise error

    service.action = action
    async with create_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await echo_service.call(channel, method)
    await server.stop(0)
    await tracing.shutdown_tracing()
    by_kind = {span.kind: span for span in receiver.spans()}
    assert (
        by_kind[2].attributes["rpc.grpc.status_code"] == by_kind[3].attributes["rpc.grpc.status_code"] == code
    )
    assert by_kind[3].error
    assert by_kind[2].error is fault, "a client's mistake is no fault of the server"


async def test_cancelled_stream_leaves_no_context_behind(receiver, eventually, caplog):
    tracing.setup_tracing("router", "r1")
    server, service, address = await serve()
    async with create_channel(address) as channel:
        call = channel.unary_stream("/test.Echo/endless")(b"x")
        assert await call.read() == b"x"
        call.cancel()
        await eventually(lambda: service.ended == ["endless"], 3)
    await server.stop(0)
    await tracing.shutdown_tracing()
    assert {span.kind: span.attributes["rpc.grpc.status_code"] for span in receiver.spans()} == {2: 1, 3: 1}
    assert "Failed to detach context" not in caplog.text
    assert not trace.get_current_span().get_span_context().is_valid


async def test_foreign_traceparent_is_continued(receiver):
    tracing.setup_tracing("router", "r1")
    server, _, address = await serve()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.unary_unary("/test.Echo/unary")(b"x", metadata=(("traceparent", parent),))
    await server.stop(0)
    await tracing.shutdown_tracing()
    (span,) = receiver.spans("0af7651916cd43dd8448eb211c80319c")
    assert (span.parent_id, span.kind) == ("b7ad6b7169203331", 2)
    headers = [("TraceParent", parent), ("host", "x")]
    tracing.setup_tracing("router", "r1")
    found = trace.get_current_span(tracing.extract(headers)).get_span_context()
    assert format(found.span_id, "016x") == "b7ad6b7169203331"


@pytest.mark.parametrize("bad", ["", "00-zz-yy-01", "x" * 300])
async def test_malformed_traceparent_is_a_new_trace(receiver, bad):
    tracing.setup_tracing("router", "r1")
    assert not trace.get_current_span(tracing.extract([("traceparent", bad)])).get_span_context().is_valid


async def test_calls_keep_their_own_traces_apart(receiver):
    tracing.setup_tracing("router", "r1")
    server, service, address = await serve()

    async def slow(request: bytes) -> None:
        await asyncio.sleep(0.02)
        assert echo_service.current_trace() == request.decode()

    service.action = slow

    async def one(channel, method):
        with tracing.tracer().start_as_current_span("request") as span:
            trace_id = format(span.get_span_context().trace_id, "032x")
            await echo_service.call(channel, method, trace_id.encode())

    async with create_channel(address) as channel:
        await asyncio.gather(*(one(channel, echo_service.METHODS[n % 6]) for n in range(30)))
    await server.stop(0)
    assert len(set(service.traces)) == 30


async def test_probes_make_no_spans(receiver):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    tracing.setup_tracing("router", "r1")
    server, _, address = await serve()
    async with create_channel(address) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    await server.stop(0)
    await tracing.shutdown_tracing()
    assert receiver.spans() == []


async def test_absent_receiver_does_not_hold_up_the_end(receiver):
    await receiver.stop()
    tracing.setup_tracing("router", "r1")
    with tracing.tracer().start_as_current_span("request"):
        pass
    async with asyncio.timeout(5):
        await tracing.shutdown_tracing()
    assert not tracing.enabled()
