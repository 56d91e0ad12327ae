"""Processes forked from one that has imported everything: clean, soon there, and never left behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from stagemesh.errors import Unavailable
from stagemesh.local.fork_server import ForkServer
from tests.library.etcd_process import EtcdProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def until(condition: Callable[[], object], within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkServer]:
    found = await ForkServer.start(tmp_path_factory.mktemp("fork") / "server.log", os.environ)
    yield found
    await found.stop()
    assert not psutil.pid_exists(found.process.pid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    await process.start()
    yield process.address
    await process.stop()


def flags(etcd: str, name: str) -> list[str]:
    return ["--etcd", etcd, "--node-id", name, "--port", "0", "--threads", "2", "--memory", str(2**28)]


async def test_a_fork_is_a_stage_process_of_its_own(server: ForkServer, etcd: str, tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    with socket.socket() as ours, (tmp_path / "open").open("w"):
        env = {**os.environ, "STAGEMESH_ZONE": "z9", "MARK": "here"}
        node = await server.fork("node", flags(etcd, "n1"), log, env)
        await until(lambda: "stage node n1 on" in log.read_text())
        about = psutil.Process(node.pid)
        assert "2 threads" in log.read_text()
        assert os.getpgid(node.pid) == node.pid
        assert about.ppid() == server.process.pid
        # Its environment is the one asked for: its log and its sockets are all that it has.
        targets = {os.readlink(each) for each in Path(f"/proc/{node.pid}/fd").iterdir() if each.exists()}
        files = {each for each in targets if each.startswith("/") and not each.startswith("/dev")}
        assert files <= {str(log), *(each for each in files if "uvloop" in each or each.endswith(".so"))}
        inode = os.fstat(server._connection.fileno()).st_ino
        assert f"socket:[{inode}]" not in targets
        assert f"socket:[{os.fstat(ours.fileno()).st_ino}]" not in targets
    # The server itself still has its one thread.
    assert psutil.Process(server.process.pid).num_threads() == 1
    node.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(node.wait(), 60) == 0
    assert "Traceback" not in log.read_text()


async def test_how_a_fork_ended_is_told(server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bad = await server.fork("bad", ["--port", "none"], log, os.environ)
    assert await asyncio.wait_for(bad.wait(), 60) == 1
    assert "port" in bad.last_log_line()
    no_etcd = await server.fork("killed", flags("127.0.0.1:9", "n2"), log, os.environ)
    no_etcd.send_signal(signal.SIGKILL)
    assert await asyncio.wait_for(no_etcd.wait(), 60) == -signal.SIGKILL
    no_etcd.send_signal(signal.SIGTERM)  # changes nothing, and harms nobody


async def test_nonsense_is_answered_and_the_server_lives_on(server: ForkServer, tmp_path: Path) -> None:
    waiting: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    server._asked[10**6] = waiting  # type: ignore[assignment]
    server._connection.send(json.dumps({"fork": 10**6, "argv": 3}).encode())
    with pytest.raises(Unavailable, match="one descriptor"):
        await asyncio.wait_for(waiting, 30)
    del server._asked[10**6]
    server._connection.send(b"\xff")
    again = await server.fork("again", ["--help"], tmp_path / "log", os.environ)
    assert await asyncio.wait_for(again.wait(), 60) == 0


async def test_nothing_is_left_when_whoever_asks_is_killed(etcd: str, tmp_path: Path) -> None:
    """The kernel ends the server, and with it what it forked."""
    log = tmp_path / "log"
    program = f"""
import asyncio, os
from pathlib import Path
from stagemesh.local.fork_server import ForkServer

async def main():
    server = await ForkServer.start(Path({str(tmp_path / "server.log")!r}), os.environ)
    node = await server.fork("node", {flags(etcd, "n4")!r}, Path({str(log)!r}), os.environ)
    print(server.process.pid, node.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    asker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert asker.stdout is not None
        line = await asyncio.to_thread(asker.stdout.readline)
        pids = [int(word) for word in line.split()]
        await until(lambda: "stage node n4 on" in log.read_text())
    finally:
        asker.kill()
        asker.wait()
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_nothing_is_left_when_the_server_is_killed(
    server: ForkServer, etcd: str, tmp_path: Path
) -> None:
    """The last test: it takes the server that the others use."""
    log = tmp_path / "log"
    node = await server.fork("node", flags(etcd, "n3"), log, os.environ)
    await until(lambda: "stage node n3 on" in log.read_text())
    asked = asyncio.create_task(server.fork("late", ["--help"], log, os.environ))
    os.kill(server.process.pid, signal.SIGKILL)
    assert await asyncio.wait_for(node.wait(), 30) == -signal.SIGKILL
    await until(lambda: not psutil.pid_exists(node.pid) or psutil.Process(node.pid).status() == "zombie")
    await asyncio.gather(asked, return_exceptions=True)
    with pytest.raises(Unavailable):
        await server.fork("later", ["--help"], log, os.environ)
