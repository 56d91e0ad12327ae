import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from stagemesh.local.processes import ChildProcess, service_argv
from stagemesh.local.supervisor import Supervised, restart_delay

_SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
_DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


async def _until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_process_is_its_own_group_and_ends_on_stop(tmp_path):
    process = await ChildProcess.start("sleeper", _SLEEP, tmp_path / "log")
    await _until(lambda: process.last_log_line() == "up")
    assert os.getpgid(process.pid) == process.pid
    await process.stop(10)
    assert process.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(process.pid)
    assert process.ended_how() == "sleeper was ended by SIGTERM"


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path):
    process = await ChildProcess.start("deaf", _DEAF, tmp_path / "log")
    await _until(lambda: process.last_log_line() == "deaf")
    await process.stop(0.2)
    assert process.returncode == -signal.SIGKILL


async def test_a_stopped_process_ends_by_sigterm_too(tmp_path):
    process = await ChildProcess.start("frozen", _SLEEP, tmp_path / "log")
    await _until(lambda: process.last_log_line() == "up")
    process.send_signal(signal.SIGSTOP)
    await process.stop(10)
    assert process.returncode == -signal.SIGTERM


async def test_what_it_said_last_tells_why_it_ended(tmp_path):
    argv = [sys.executable, "-c", "print('first'); import sys; sys.exit('stagemesh: no such model')"]
    process = await ChildProcess.start("broken", argv, tmp_path / "log")
    assert await process.wait() == 1
    assert process.ended_how() == "broken ended with status 1: no such model"


def test_children_die_with_a_parent_that_was_killed(tmp_path):
    script = f"""
import asyncio, sys
from pathlib import Path
from stagemesh.local.processes import ChildProcess
async def main():
    child = await ChildProcess.start("child", {_SLEEP!r}, Path({str(tmp_path / "log")!r}))
    while child.last_log_line() != "up":
        await asyncio.sleep(0.02)
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


async def test_a_supervised_process_comes_back_until_stopped(tmp_path):
    events = []

    async def start(restarts):
        return await ChildProcess.start(f"s{restarts}", _SLEEP, tmp_path / "log")

    place = Supervised("s", start, events.append)
    await place.start()
    place.supervise()
    first = place.process
    first.send_signal(signal.SIGKILL)
    await _until(lambda: place.process is not first)
    assert place.process.name == "s1"
    assert "s0 was ended by SIGKILL" in events[0]
    await place.stop(10)
    assert place.process.returncode is not None
    assert place.restarts == 1


def test_restart_delays_grow_and_stay_bounded():
    delays = [restart_delay(deaths) for deaths in range(40)]
    assert delays == sorted(delays)
    assert delays[0] < 1
    assert delays[-1] == 15


def test_service_argv_leaves_empty_flags_out():
    argv = service_argv("stage", {"node-id": "n", "port": 0, "device": ""})
    assert argv[1:] == ["-P", "-m", "stagemesh.services.stage", "--node-id", "n", "--port", "0"]


async def test_a_program_that_does_not_exist_is_told(tmp_path):
    process = await ChildProcess.start("nothing", [str(tmp_path / "nothing")], tmp_path / "log")
    assert await process.wait() != 0
    assert "No such file" in process.ended_how()


@pytest.mark.parametrize("count", [3])
async def test_stop_is_safe_to_repeat(tmp_path, count):
    process = await ChildProcess.start("sleeper", _SLEEP, tmp_path / "log")
    for _ in range(count):
        await process.stop(10)
    assert process.returncode is not None
