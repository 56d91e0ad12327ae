"""The router as a process: what it prints, what it refuses to start with, and how it leaves."""

import asyncio
import json
import signal
import socket
import sys
import urllib.request
from contextlib import asynccontextmanager

import pytest

from stagemesh import records
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import inference_pb2, inference_pb2_grpc, registry_pb2

from .conftest import eventually
from .scripted_stage import ScriptedStage
from .specs import model, replica


@asynccontextmanager
async def router(*flags):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stagemesh.services.router",
        "--log-level",
        "warning",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def refused(*flags):
    async with router(*flags) as process:
        _, err = await asyncio.wait_for(process.communicate(), 40)
        return process.returncode, err.decode().strip().splitlines()


async def test_serves_both_doors_and_drains_on_sigterm(mesh, etcd_process):
    flags = ("--etcd", etcd_process.address, "--port", "0", "--http-port", "0", "--lease-ttl-s", "2")
    async with ScriptedStage("hang") as stage, router(*flags) as process:
        await mesh.put(
            replica("0a", 0, 1, address=stage.address), model(stages=1, source=str(mesh.checkpoint))
        )
        line = (await asyncio.wait_for(process.stdout.readline(), 40)).decode()
        assert line.startswith("router ready: gRPC 127.0.0.1:")
        listed, _ = await mesh.etcd.get_prefix(records.SERVICES + "router/")
        record = records.from_json(listed[0].value, registry_pb2.ServiceRecord)
        assert record.pid == process.pid
        assert f"gRPC {record.address}, HTTP http://{record.http_address}" in line
        page = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://{record.http_address}/v1/models", timeout=10).read()
        )
        assert [each["id"] for each in json.loads(page)["data"]] == ["m"]

        channel = create_channel(record.address)
        request = inference_pb2.GenerateRequest(model="m", prompt="w1", max_tokens=5)
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)
        running = asyncio.create_task(_read(call))
        await eventually(lambda: stage.opened)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert process.returncode is None, "it waits for the running generation"
        stage.release.set()
        assert len(await asyncio.wait_for(running, 10)) == 5
        await channel.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert (await process.stderr.read()).decode() == ""
    assert (await mesh.etcd.get_prefix(records.SERVICES))[0] == []


async def _read(call):
    return [chunk async for chunk in call]


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
async def test_a_taken_port_is_one_clear_line(etcd_process, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = {"--port": "0", "--http-port": "0", flag: port}
        code, lines = await refused(
            "--etcd", etcd_process.address, *(word for pair in ports.items() for word in pair)
        )
    assert code == 1
    assert len(lines) == 1
    assert port in lines[0]
    assert "taken" in lines[0]
    assert flag in lines[0]


async def test_no_etcd_and_bad_settings_are_clear_lines():
    code, lines = await refused("--etcd", "127.0.0.1:9")
    assert (code, len(lines)) == (1, 1)
    assert "etcd" in lines[0]
    code, lines = await refused("--policy", "best", "--max-sessions", "0")
    assert code == 1
    assert len(lines) == 2
    assert "round_robin" in "".join(lines)
