"""Child processes of a benchmark: they print the port they listen on, and die with it."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from stagemesh.local.processes import ChildProcess

_READY_S = 60.0
_QUIET_CORES, _QUIET_S = 0.05, 1.0


@contextlib.asynccontextmanager
async def server(module: str, *args: str) -> AsyncIterator[int]:
    """Run `python -m module --port-file FILE args...`; the port that it wrote there. Raises when it ends first."""
    with tempfile.TemporaryDirectory(prefix="stagemesh-bench-") as folder:
        port_file = Path(folder) / "port"
        argv = [sys.executable, "-m", module, "--port-file", str(port_file), *args]
        child = await ChildProcess.start(module, argv, Path(folder) / "log")
        try:
            async with asyncio.timeout(_READY_S):
                while not port_file.exists():
                    if child.returncode is not None:
                        raise RuntimeError(child.ended_how())
                    await asyncio.sleep(0.02)
            yield int(port_file.read_text())
        finally:
            await child.stop(2.0)


async def until_settled(pid: int) -> None:
    """Return when the process rests: a service that answers may still load things. Raises `TimeoutError` after a minute."""
    process = psutil.Process(pid)
    async with asyncio.timeout(_READY_S):
        before, used = 0.0, _QUIET_S
        while used > _QUIET_CORES * _QUIET_S:
            await asyncio.sleep(_QUIET_S)
            now = sum(process.cpu_times()[:2])
            before, used = now, now - before


def announce_port(port_file: str, port: int) -> None:
    """Called by the child once it listens; the file appears with its content."""
    ready = Path(port_file).with_suffix(".new")
    ready.write_text(str(port))
    ready.rename(port_file)
