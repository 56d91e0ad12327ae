"""Errors, health, reflection and ports of the servers that every service runs."""

import asyncio
import gc
import logging
import socket
import weakref
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from stagemesh import errors, etcd_channel
from stagemesh.grpc_errors import DETAILS_KEY, from_rpc_error, to_status
from stagemesh.grpc_server import GrpcServer, channel_options, create_channel
from tests.library import echo_service

KINDS = [
    errors.InternalError,
    errors.InvalidArgument,
    errors.OutOfRange,
    errors.NotFound,
    errors.AlreadyExists,
    errors.Unauthenticated,
    errors.FailedPrecondition,
    errors.Unavailable,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
    errors.Cancelled,
]


@pytest.fixture
async def echo():
    server = GrpcServer("127.0.0.1", 0)
    service = echo_service.Echo()
    service.add_to(server.server)
    port = await server.start([echo_service.NAME])
    service.grpc_server, service.address = server, f"127.0.0.1:{port}"
    yield service
    await server.stop(0)


@pytest.fixture
async def channel(echo):
    async with create_channel(echo.address) as channel:
        yield channel


def raising(error: Exception):
    async def action(request: bytes) -> None:
        raise error

    return action


@given(
    kind=st.sampled_from(KINDS),
    message=st.text(min_size=1, max_size=50),
    field=st.text(max_size=30),
    retry=st.none() | st.floats(0, 1e6),
)
def test_status_round_trip(kind, message, field, retry):
    code, details, metadata = to_status(kind(message, field=field, retry_after_s=retry))
    back = from_rpc_error(
        grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)
    )
    assert type(back) is kind
    assert (back.message, back.field) == (message, field)
    assert back.retry_after_s == (None if retry is None else pytest.approx(retry, abs=1e-6))


def test_details_are_the_published_messages():
    error = errors.ResourceExhausted("slow down", field="inputs[0]", retry_after_s=1.5)
    ((key, value),) = to_status(error)[2]
    status = status_pb2.Status.FromString(value)
    assert (key, status.code, status.message) == (DETAILS_KEY, 8, "slow down")
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(bad)
    assert status.details[1].Unpack(retry)
    assert bad.field_violations[0].field == "inputs[0]"
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


def test_unreadable_details_are_passed_over():
    metadata = grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "no such model")
    back = from_rpc_error(error)
    assert isinstance(back, errors.NotFound)
    assert (back.message, back.field) == ("no such model", "")


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_answers_pass(echo, channel, method):
    expected = [b"x"] * (3 if method.startswith("stream") else 1)
    assert await echo_service.call(channel, method) == expected


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_error_of_the_tree(echo, channel, method):
    echo.action = raising(errors.ResourceExhausted("too much\nat once", field="prompt", retry_after_s=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo_service.call(channel, method)
    back = from_rpc_error(caught.value)
    assert type(back) is errors.ResourceExhausted
    assert (back.message, back.field, back.retry_after_s) == ("too much\nat once", "prompt", 2)


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_other_errors_say_nothing(echo, channel, method, caplog):
    echo.action = raising(ValueError("/secret/path"))
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo_service.call(channel, method)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "/secret/path" in caplog.text, "the log has what the client must not see"
    assert f"/test.Echo/{method}" in caplog.text
    echo.action = echo._nothing
    assert await echo_service.call(channel, method)


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_an_error_leaves_nothing_to_the_garbage_collector(echo, channel, method, eventually):
    left = []

    def remembered(error):
        left.append(weakref.ref(error))
        return error

    async def refuse(request):
        raise remembered(errors.ResourceExhausted("full"))

    echo.action = refuse
    gc.disable()
    try:
        with pytest.raises(grpc.aio.AioRpcError):
            await echo_service.call(channel, method)
        await eventually(lambda: left and left[0]() is None, 3)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", echo_service.METHODS)
async def test_a_cancellation_that_nobody_asked_for_reaches_the_caller(echo, channel, method):
    """As of a call on a channel that is closed below it: gRPC itself would leave the caller waiting for ever."""
    echo.action = raising(asyncio.CancelledError())
    async with asyncio.timeout(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo_service.call(channel, method)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_handlers_own_abort_and_trailers_pass(echo, channel):
    async def unary(request, context):
        context.set_trailing_metadata((("stagemesh-cache", "miss"),))
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "its own")
        raise errors.InvalidArgument("bad", field="f")

    echo.unary = unary
    server = GrpcServer("127.0.0.1", 0)
    echo.add_to(server.server)
    port = await server.start([])
    async with create_channel(f"127.0.0.1:{port}") as own:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo_service.call(own, "unary", b"abort")
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "its own")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo_service.call(own, "unary")
        assert ("stagemesh-cache", "miss") in tuple(caught.value.trailing_metadata())
        assert from_rpc_error(caught.value).field == "f"
    await server.stop(0)


async def test_cancelled_call_ends_its_generator(echo, channel, eventually):
    responses = channel.unary_stream("/test.Echo/endless")(b"x")
    assert await responses.read() == b"x"
    responses.cancel()
    await eventually(lambda: echo.ended == ["endless"], 3)


async def test_unknown_method(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/nothing")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_message_beyond_the_limit_is_refused_and_the_service_lives(echo):
    server = GrpcServer("127.0.0.1", 0, max_message_bytes=10_000)
    echo.add_to(server.server)
    port = await server.start([])
    async with create_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo_service.call(channel, "unary", b"x" * 20_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await echo_service.call(channel, "unary", b"x" * 9_000)
    await server.stop(0)


def test_sizes_are_never_unlimited():
    options = dict(channel_options())
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 64 * 2**20


async def test_health_follows_set_serving(echo, channel):
    stub = health_pb2_grpc.HealthStub(channel)

    async def status(service: str) -> int:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status

    assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING
    await echo.grpc_server.set_serving(True)
    assert await status("") == await status("test.Echo") == health_pb2.HealthCheckResponse.SERVING
    await echo.grpc_server.set_serving(False, "test.Echo")
    assert await status("") == health_pb2.HealthCheckResponse.SERVING
    assert await status("test.Echo") == health_pb2.HealthCheckResponse.NOT_SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(echo.grpc_server.stop(1))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stopping


async def test_reflection_lists_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert names == {"test.Echo", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    call.cancel()


async def test_taken_port(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.ConfigError, match=f"^port {port} is taken: [^\n]*$"):
            await GrpcServer("127.0.0.1", port).start([])
    first = GrpcServer("127.0.0.1", 0)
    port = await first.start([])
    with pytest.raises(errors.ConfigError, match=f"port {port} is taken"):
        await GrpcServer("127.0.0.1", port).start([])
    await first.stop(0)
    assert capfd.readouterr().err == "", "the error is the only line told"
    again = GrpcServer("127.0.0.1", port)
    assert await again.start([]) == port, "a stopped server frees its port"
    await again.stop(0)


@pytest.mark.parametrize(
    ("host", "said"), [("no.such.host.invalid", "cannot be resolved"), ("192.0.2.1", "cannot listen")]
)
async def test_host_that_is_not_ours(host, said):
    with pytest.raises(errors.ConfigError, match=said):
        await GrpcServer(host, 0).start([])


def test_grpc_knows_every_option_that_it_is_given():
    """It passes over a name that it does not know: the server would then hang up on a peer that pings."""
    library = Path(cygrpc.__file__).read_bytes()
    options = {name for name, _ in [*channel_options(), *etcd_channel._OPTIONS]}
    assert [name for name in sorted(options) if name.encode() + b"\0" not in library] == []


def test_retry_after_in_milliseconds_and_back():
    assert errors.Unavailable("x").retry_after_ms == 0
    assert errors.seconds_of(0) is None
    for seconds, milliseconds in ((0.0, 1), (0.0001, 1), (1.5, 1500), (1e12, 2**31)):
        assert errors.Unavailable("x", retry_after_s=seconds).retry_after_ms == milliseconds
    assert errors.seconds_of(1500) == 1.5
