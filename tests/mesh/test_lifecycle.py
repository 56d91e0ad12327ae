"""`stagemesh serve` as a person runs it: what it says, how it ends, and that nothing of it is left."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from stagemesh.local.leftovers import segments
from stagemesh.local.ports import is_free

from .traffic import until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

STAGEMESH = Path(sys.executable).with_name("stagemesh")
ANY_PORT = ("--http-port", "0", "--grpc-port", "0", "--registry-port", "0")
END_S = 60


@dataclass
class Serve:
    """A running `stagemesh serve` in a temp folder of its own, and every process that was seen below it."""

    process: asyncio.subprocess.Process
    temp: Path
    out: Path
    err: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def look(self) -> None:
        """Note its processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)

    @property
    def said(self) -> str:
        return self.out.read_text()

    @property
    def complained(self) -> str:
        return self.err.read_text()

    async def says(self, words: str, within_s: float = 120) -> None:
        """Wait for words on stdout or stderr."""

        def look() -> bool:
            self.look()
            assert self.process.returncode is None, self.complained
            return words in self.said + self.complained

        await until(look, within_s)

    def left(self) -> list[str]:
        """What is there although it has ended: processes, and anything in its temp folder."""
        processes = [repr(each) for each in self.seen.values() if each.is_running()]
        return processes + [str(path) for path in self.temp.iterdir()]


@contextlib.asynccontextmanager
async def serve(tmp_path: Path, *arguments: str | Path) -> AsyncIterator[Serve]:
    temp = tmp_path / "temp"
    temp.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("STAGEMESH_")}
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            str(STAGEMESH),
            "serve",
            *map(str, arguments),
            stdout=stdout,
            stderr=stderr,
            env={**env, "TMPDIR": str(temp), "PYTHONUNBUFFERED": "1"},
        )
    run = Serve(process, temp, out, err)
    try:
        yield run
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ctrl_c_while_serving_ends_all_of_it(llama: Path, tmp_path: Path) -> None:
    before = segments()
    flags = ("--stages", "2", "--threads", "1", "--name", "llama", *ANY_PORT)
    async with serve(tmp_path, llama, *flags) as run:
        await run.says("Ctrl-C stops it")
        addresses = re.findall(r"127\.0\.0\.1:\d+", run.said)
        assert len(addresses) == 4
        async with httpx.AsyncClient(base_url=f"http://{addresses[0]}", timeout=30) as http:
            body = {"model": "llama", "prompt": "ab", "max_tokens": 4, "temperature": 0}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
            # One that runs when the signal comes.
            running = asyncio.create_task(http.post("/v1/completions", json={**body, "max_tokens": 300}))
            await asyncio.sleep(0.1)
            run.look()
            # etcd, registry, cache, router, two stages; and what renders templates
            assert len(run.seen) >= 6
            assert list(run.temp.iterdir())
            run.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(END_S):
                code = await run.process.wait()
            await asyncio.gather(running, return_exceptions=True)
    assert code == 0, run.complained
    assert "Traceback" not in run.complained
    assert run.left() == []
    assert segments() == before
    assert [address for address in addresses if not is_free(int(address.rpartition(":")[2]))] == []


@pytest.mark.parametrize("words", ["starting etcd", "starting registry", "stage nodes have joined", "ready"])
async def test_ctrl_c_while_it_starts_ends_all_of_it(llama: Path, tmp_path: Path, words: str) -> None:
    before = segments()
    async with serve(tmp_path, llama, "--stages", "2", "--threads", "1", *ANY_PORT) as run:
        await run.says(words)
        assert run.seen or words == "starting etcd"
        run.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(END_S):
            code = await run.process.wait()
    assert code in (0, 130), run.complained
    assert "Traceback" not in run.complained
    assert "Ctrl-C stops it" not in run.said
    assert run.left() == []
    assert segments() == before


async def test_ctrl_c_before_anything_was_started(llama: Path, tmp_path: Path) -> None:
    """While Python still imports."""
    for index, delay_s in enumerate((0.3, 0.8, 1.5)):
        folder = tmp_path / str(index)
        folder.mkdir()
        async with serve(folder, llama, *ANY_PORT) as run:
            await asyncio.sleep(delay_s)
            run.look()
            run.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(END_S):
                code = await run.process.wait()
        assert code in (0, 130, -signal.SIGINT), run.complained
        assert run.left() == []


# ---- what cannot be served ----


def _copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def _missing(llama: Path, tmp_path: Path) -> Path:
    return tmp_path / "none"


def _truncated(llama: Path, tmp_path: Path) -> Path:
    folder = _copy(llama, tmp_path)
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    return folder


def _not_safetensors(llama: Path, tmp_path: Path) -> Path:
    folder = _copy(llama, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    return folder


def _unknown_architecture(llama: Path, tmp_path: Path) -> Path:
    folder = _copy(llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "zeppelin", "architectures": ["ZeppelinForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "no checkpoint folder"),
        (_truncated, "truncated"),
        (_not_safetensors, "model.safetensors"),
        (_unknown_architecture, "'ZeppelinForCausalLM' is not supported"),
    ],
)
async def test_a_checkpoint_that_cannot_be_served_is_one_line(
    llama: Path, tmp_path: Path, make, words: str
) -> None:
    await _one_line(tmp_path, words, make(llama, tmp_path), *ANY_PORT)


@pytest.mark.parametrize("use", ["http", "grpc", "registry"])
async def test_a_taken_port_is_one_line(llama: Path, tmp_path: Path, use: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        flags = [*ANY_PORT, f"--{use}-port", str(port)]
        await _one_line(tmp_path, f"{use} port {port} is taken", llama, *flags)


async def test_no_etcd_is_one_line(llama: Path, tmp_path: Path) -> None:
    await _one_line(tmp_path, "127.0.0.1:1", llama, "--etcd", "127.0.0.1:1", *ANY_PORT)


async def _one_line(tmp_path: Path, words: str, *arguments: str | Path) -> None:
    before = segments()
    async with serve(tmp_path, *arguments) as run:
        async with asyncio.timeout(END_S):
            while run.process.returncode is None:
                run.look()
                await asyncio.sleep(0.05)
    assert run.process.returncode == 1
    said = [line for line in run.complained.splitlines() if line.startswith("stagemesh: ")]
    assert len(said) == 1, run.complained
    assert words in said[0]
    assert "Traceback" not in run.complained
    assert run.left() == []
    assert segments() == before
