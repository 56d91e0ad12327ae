"""`demo` and `serve` as a user runs them: real processes, and nothing left afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from stagemesh.local.leftovers import segments
from stagemesh.local.ports import free_port, is_free

pytestmark = pytest.mark.mesh

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples/demo_model/model"
_PROGRAM = [sys.executable, "-c", "from stagemesh.cli import main; main()"]


@pytest.fixture
def temp(tmp_path):
    """An environment whose temp folder is the test's own, and the check that nothing is left in it."""
    before = segments()
    yield {**os.environ, "TMPDIR": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []
    assert segments() == before


def _run(env, *arguments, timeout=60):
    command = [*_PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)


def test_demo_streams_shows_a_hit_and_leaves_nothing(temp):
    http, grpc = free_port(), free_port()
    result = _run(
        temp,
        "demo",
        "--replicas",
        1,
        "--max-tokens",
        8,
        "--http-port",
        http,
        "--grpc-port",
        grpc,
        timeout=280,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("route     stage 0 -> ") == 4
    assert ", stage 1 -> " in result.stdout
    assert result.stdout.count("cache     miss") == 4
    assert result.stdout.count("cache     hit") == 1
    assert "tokens/s" in result.stdout
    assert "/v1/chat/completions" in result.stdout
    assert "no process, port or temp folder is left" in result.stdout
    assert is_free(http)
    assert is_free(grpc)


def test_serve_until_interrupted_leaves_nothing(temp):
    http, grpc, registry = free_port(), free_port(), free_port()
    ports = ["--http-port", http, "--grpc-port", grpc, "--registry-port", registry]
    command = [*_PROGRAM, "serve", MODEL, "--name", "small", *ports]
    with subprocess.Popen(
        list(map(str, command)), env=temp, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as serve:
        try:
            for line in serve.stdout:
                if "Ctrl-C" in line:
                    break
            children = psutil.Process(serve.pid).children(recursive=True)
            # etcd, registry, cache, router with its two renderers of templates, a stage
            assert 5 <= len(children) <= 7
            _ask(temp, f"127.0.0.1:{grpc}", http, {child.pid for child in children})
            serve.send_signal(signal.SIGINT)
            assert serve.wait(60) == 0
        finally:
            serve.kill()
    deadline = time.monotonic() + 5
    while any(child.is_running() for child in children):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)
    assert [port for port in (http, grpc, registry) if not is_free(port)] == []


def _ask(env, address, http, pids):
    status = json.loads(_run(env, "status", "--json", "--address", address).stdout)
    replica = status["replicas"][0]
    assert (replica["model"], replica["stage"], replica["state"]) == ("small", 0, "READY")
    assert replica["pid"] in pids
    answer = _run(env, "generate", "def f(", "--max-tokens", 4, "--json", "--address", address)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["usage"]["completion_tokens"] == 4
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/v1/models", timeout=20) as models:
        assert [model["id"] for model in json.load(models)["data"]] == ["small"]
    refused = _run(env, "generate", "def f(", "--max-tokens", 0, "--address", address)
    assert refused.returncode == 1
    assert "max_tokens" in refused.stderr


def test_bench_of_a_folder_starts_a_mesh_accounts_for_the_time_and_leaves_nothing(temp):
    sizes = ["--streams", "1,4", "--tokens", 12, "--prompt-tokens", 8, "--rounds", 1]
    result = _run(temp, "bench", MODEL, "--threads", 1, *sizes, "--json", timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["stages"] == 2
    for load in found["loads"]:
        assert load["tokens_per_s"]["median"] > 0
        assert len(load["stages"]) == 2
        parts = [
            stage[f"{part}_ms"]
            for stage in load["stages"]
            for part in ("queue", "compute", "encode", "network")
        ]
        assert all(part >= 0 for part in parts)
        assert all(stage["compute_ms"] > 0 for stage in load["stages"])
        assert all(1 <= stage["rows"] <= load["streams"] for stage in load["stages"])
        assert all(0 < stage["bubble"] < 1.2 for stage in load["stages"])
        assert sum(parts) + load["rest_ms"] == pytest.approx(load["between_tokens_ms"]["mean"], abs=0.01)
    assert found["loads"][0]["predicted"]["error"] == pytest.approx(0, abs=0.5)
    assert "stopped" in result.stderr
