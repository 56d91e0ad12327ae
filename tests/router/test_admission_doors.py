"""Overload, priorities and deadlines through both doors of the real core."""

import asyncio
import time

import grpc
import httpx
import pytest
from stagemesh.services.router.admission.priority import Priority
from stagemesh.services.router.http.app import create_app

from stagemesh.errors import ResourceExhausted
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.oip import open_inference_pb2 as oip

from .conftest import eventually
from .test_grpc_doors import Doors, ask
from .test_resume_core import go_on

BODY = {"model": "m", "prompt": "w1", "max_tokens": 3, "temperature": 0}
LOW = {"x-stagemesh-priority": "low"}
HIGH = {"x-stagemesh-priority": "high"}


def client(core):
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(core)), base_url="http://router")


async def tokens(doors, **headers):
    """Ids of a generation's tokens; raises its error."""
    call = doors.own.Generate(ask(), metadata=list(headers.items()), timeout=30)
    try:
        return [token.id async for chunk in call for token in chunk.tokens]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def full(mesh, **config):
    """A core that runs the one request that it may, which waits in the middle; and that request."""
    core = await mesh.start({"0a": "hang"}, max_sessions=1, max_waiting=1, **config)
    doors = await mesh.enter(Doors(core))
    running = asyncio.create_task(tokens(doors))
    await eventually(lambda: core._gate.admission.active == 1)
    return core, doors, running


async def test_a_refusal_says_at_both_doors_when_to_try_again(mesh):
    core, doors, running = await full(mesh)
    waiting = asyncio.create_task(tokens(doors))
    await eventually(lambda: core._gate.admission.waiting == 1)
    with pytest.raises(ResourceExhausted, match="the queue is full") as caught:
        await tokens(doors)
    assert caught.value.retry_after_s >= 0.1
    async with client(core) as http:
        refused = await http.post("/v1/completions", json=BODY)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after-ms"]) >= 100
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    mesh.stages["0a"].release.set()
    assert await running == await waiting == [10, 11, 12]
    assert "active=0/1, waiting=0/1" in repr(core)


async def test_a_higher_priority_takes_the_place_of_a_lower_one_across_the_doors(mesh):
    core, doors, running = await full(mesh)
    async with client(core) as http:
        low = asyncio.create_task(http.post("/v1/completions", json=BODY, headers=LOW))
        await eventually(lambda: core._gate.admission.waiting == 1)
        high = asyncio.create_task(tokens(doors, **HIGH))
        refused = await asyncio.wait_for(low, 10)
        assert refused.status_code == 429
        assert "priority high took its place" in refused.json()["error"]["message"]
    mesh.stages["0a"].release.set()
    assert await high == await running == [10, 11, 12]


async def test_a_priority_that_is_none_or_too_high_is_refused_by_name(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: {tenant: one, max_priority: low}\nk2: two\n")
    core = await mesh.start(api_keys=keys)
    doors = await mesh.enter(Doors(core))
    async with client(core) as http:
        for key, name, status in (
            ("k1", "high", 403),
            ("k1", "low", 200),
            ("k1", "", 200),
            ("k2", "high", 200),
            ("k2", "7", 400),
        ):
            headers = {"authorization": f"Bearer {key}", "x-stagemesh-priority": name}
            answer = await http.post("/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == status, (key, name)
            if status != 200:
                assert answer.json()["error"]["param"] == "x-stagemesh-priority"
    metadata = [("authorization", "Bearer k1"), ("x-stagemesh-priority", "normal")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [chunk async for chunk in doors.own.Generate(ask(), metadata=metadata)]
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_the_callers_deadline_reaches_the_stage_from_both_doors(mesh):
    core = await mesh.start({"0a": "good"})
    doors = await mesh.enter(Doors(core))
    opened = mesh.stages["0a"].opened
    before = time.time() * 1000
    async for _ in doors.own.Generate(ask(), timeout=20):
        pass
    async with client(core) as http:
        for headers, status in (({"x-stagemesh-timeout": "20"}, 200), ({"x-stagemesh-timeout": "-1"}, 400)):
            answer = await http.post("/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == status
    after = time.time() * 1000
    assert len(opened) == 2
    for session in opened:
        # gRPC sends how long a call has, rounded up to a tenth of a second.
        assert before + 15_000 <= session.deadline_unix_ms <= after + 20_100
    assert answer.json()["error"]["param"] == "x-stagemesh-timeout"


async def test_a_request_that_waits_leaves_the_queue_with_its_caller_and_with_its_deadline(mesh):
    core, doors, running = await full(mesh)
    waiting = lambda: core._gate.admission.waiting  # noqa: E731
    call = doors.own.Generate(ask())
    reading = asyncio.create_task(call.read())
    await eventually(lambda: waiting() == 1)
    call.cancel()
    await eventually(lambda: waiting() == 0)
    await asyncio.gather(reading, return_exceptions=True)
    async with client(core) as http:
        late = await http.post("/v1/completions", json=BODY, headers={"x-stagemesh-timeout": "0.2"})
    assert late.status_code == 504
    assert waiting() == 0
    running.cancel()
    await eventually(lambda: "active=0/1, waiting=0/1" in repr(core))
    await eventually(lambda: mesh.stages["0a"].cancelled == 1)
    await asyncio.gather(running, return_exceptions=True)


async def test_an_answer_that_goes_on_does_not_wait_behind_those_that_have_not_begun(mesh):
    core, doors, running = await full(mesh)
    mesh.stages["0a"].release.set()
    call = doors.own.Generate(ask(max_tokens=6))
    first = await call.read()
    call.cancel()
    await running
    mesh.stages["0a"].release.clear()
    running = asyncio.create_task(tokens(doors))
    await eventually(lambda: core._gate.admission.active == 1 and len(mesh.stages["0a"].opened) == 3)
    waiting = asyncio.create_task(tokens(doors))
    await eventually(lambda: core._gate.admission.waiting == 1)
    again = go_on(ask(max_tokens=6), [first])
    rest = asyncio.create_task(doors.own.Generate(again).read())
    await eventually(lambda: core._gate.admission.active == 2)
    assert core._gate.admission.waiting == 1
    mesh.stages["0a"].release.set()
    assert (await rest).tokens[0].id == first.tokens[-1].id + 1
    assert await running == await waiting == [10, 11, 12]


async def test_refusals_are_counted_and_what_waits_is_shown(mesh):
    core, doors, running = await full(mesh)
    waiting = asyncio.create_task(tokens(doors, **LOW))
    await eventually(lambda: core._gate.admission.waiting == 1)
    async with client(core) as http:
        await http.post("/v1/completions", json=BODY, headers=LOW)
        page = (await http.get("/metrics")).text
    assert 'stagemesh_requests_waiting{priority="low"} 1.0' in page
    assert 'stagemesh_requests_waiting{priority="high"} 0.0' in page
    assert 'stagemesh_admission_refusals_total{model="m",priority="low",reason="full"}' in page
    mesh.stages["0a"].release.set()
    assert await running == await waiting == [10, 11, 12]
    async with client(core) as http:
        page = (await http.get("/metrics")).text
    assert 'stagemesh_admission_wait_seconds_count{priority="low"}' in page


def open_ask(**parameters):
    """The same generation in the Open Inference Protocol."""
    request = oip.ModelInferRequest(model_name="m")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"w1")
    request.parameters["max_tokens"].int64_param = 3
    request.parameters["temperature"].double_param = 0.0
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(value)
    return request


def whole(number):
    return oip.InferParameter(int64_param=number)


async def test_open_inference_requests_have_priorities(mesh):
    core, doors, running = await full(mesh)
    low = asyncio.ensure_future(doors.open.ModelInfer(open_ask(priority=oip.InferParameter(uint64_param=9))))
    await eventually(lambda: core._gate.admission.waiting == 1)
    assert core._gate.admission.waiting_of(Priority.LOW) == 1
    high = asyncio.ensure_future(doors.open.ModelInfer(open_ask(priority=oip.InferParameter(uint64_param=1))))
    with pytest.raises(grpc.aio.AioRpcError, match="priority high took its place"):
        await asyncio.wait_for(low, 10)
    assert core._gate.admission.waiting_of(Priority.HIGH) == 1
    mesh.stages["0a"].release.set()
    assert (await high).outputs[0].name == "text_output"
    await running


async def test_open_inference_requests_have_timeouts(mesh):
    _, doors, running = await full(mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await doors.open.ModelInfer(open_ask(timeout=whole(200_000)), timeout=30)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    mesh.stages["0a"].release.set()
    await running
    opened, before = mesh.stages["0a"].opened, time.time() * 1000
    await doors.open.ModelInfer(open_ask(timeout=whole(9_000_000)), timeout=30)
    assert before + 8_000 <= opened[-1].deadline_unix_ms <= time.time() * 1000 + 9_000
    await doors.open.ModelInfer(open_ask(timeout=whole(0)), timeout=20)
    assert before + 15_000 <= opened[-1].deadline_unix_ms <= time.time() * 1000 + 20_100


async def test_open_inference_priorities_are_limited_by_the_key_and_named_when_they_are_none(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: {tenant: one, max_priority: low}\n")
    doors = await mesh.enter(Doors(await mesh.start(api_keys=keys)))
    metadata = [("authorization", "Bearer k1")]
    for parameters, code, words in (
        ({"priority": whole(1)}, grpc.StatusCode.PERMISSION_DENIED, "low at most"),
        ({"priority": whole(-1)}, grpc.StatusCode.INVALID_ARGUMENT, "parameters.priority"),
        (
            {"timeout": oip.InferParameter(string_param="x")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "parameters.timeout",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await doors.open.ModelInfer(open_ask(**parameters), metadata=metadata)
        assert caught.value.code() == code
    assert await doors.open.ModelInfer(open_ask(priority=whole(3)), metadata=metadata)
    assert await doors.open.ModelInfer(open_ask(), metadata=metadata)
