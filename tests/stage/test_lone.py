"""A node on its own comes back without importing anything again, and ends when it is told to, or told nonsense."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.asyncio


def until(condition: Callable[[], object], process: subprocess.Popen[bytes], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end
        time.sleep(0.02)


def start(log: Path, *flags: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "stagemesh.services.stage.warm.lone", *flags]
    with log.open("ab") as output:
        return subprocess.Popen(
            argv, stdout=output, stderr=output, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        )


async def test_a_killed_service_is_forked_again_and_a_signal_ends_it(etcd: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--etcd", etcd, "--node-id", "n1", "--port", "0", "--threads", "1", "--memory", str(2**28))
    process = start(log, *flags)
    try:
        until(lambda: log.read_text().count("stage node n1 on") == 1, process)
        (first,) = psutil.Process(process.pid).children()
        first.send_signal(signal.SIGKILL)
        until(lambda: log.read_text().count("stage node n1 on") == 2, process)
        (second,) = psutil.Process(process.pid).children()
        assert second.pid != first.pid
        # Forked from the process that had imported everything, which is what it was.
        assert second.create_time() > first.create_time()
        assert psutil.Process(process.pid).num_threads() == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not psutil.pid_exists(second.pid)
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


async def test_what_another_start_would_not_mend_ends_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(log, "--port", "none")
    assert process.wait(60) == 1
    assert "port" in log.read_text()
    assert "stage.again" not in log.read_text()
