"""Child processes of a benchmark: they print the port they listen on, and die with it."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from stagemesh.local.processes import ChildProcess

_READY_S = 60.0


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


def announce_port(port_file: str, port: int) -> None:
    """Called by the child once it listens; the file appears with its content."""
    ready = Path(port_file).with_suffix(".new")
    ready.write_text(str(port))
    ready.rename(port_file)
