"""What joins a gRPC process with a compute process: a pipe each way, and shared memory with a place per pass.

A pipe message is the number of a place; on the way back, the seconds that the pass took as well.
"""

import asyncio
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable

from bench.checkpoints import SHAPES
from stagemesh.tensor import ITEM_BYTES, TensorView

# Sessions that decode together, a row each.
ROWS = 4
SLOTS = 2
_DONE = struct.Struct("=Bd")


def slots(memory: mmap.mmap, size: int) -> list[memoryview]:
    """The places for one pass's tensor each; a result takes the place of its work."""
    return [memoryview(memory)[index * size : (index + 1) * size] for index in range(SLOTS)]


def serve(run: Callable[[memoryview], tuple[TensorView, float]], work: int, done: int, memory: int) -> None:
    """The compute process: run what comes down the pipe until the other end closes it."""
    size = os.fstat(memory).st_size
    places = slots(mmap.mmap(memory, size), size // SLOTS)
    os.write(done, _DONE.pack(0, 0.0))
    while slot := os.read(work, 1):
        out, seconds = run(places[slot[0]])
        places[slot[0]][:] = out.data
        os.write(done, _DONE.pack(slot[0], seconds))


class Beside:
    """The compute process, seen from the gRPC process; use after `await start()`."""

    def __init__(self, model: str, dtype: str, fast: bool) -> None:
        size = ROWS * SHAPES[model].hidden * ITEM_BYTES[dtype]
        memory = os.memfd_create("stagemesh-bench")
        os.ftruncate(memory, SLOTS * size)
        work, self._work = os.pipe()
        self._results, done = os.pipe()
        argv = [sys.executable, "-m", "bench.threads_compute", str(work), str(done), str(memory)]
        argv += ["--model", model, "--dtype", dtype, *([] if fast else ["--plain"])]
        child = subprocess.Popen(argv, pass_fds=(work, done, memory))
        os.close(work)
        os.close(done)
        self.pids = [os.getpid(), child.pid]
        self._places = slots(mmap.mmap(memory, SLOTS * size), size)
        self._free = list(range(SLOTS))
        self._waiting: dict[int, asyncio.Future[float]] = {}

    async def start(self) -> None:
        """Wait until the child has its model."""
        await asyncio.to_thread(self._read)
        os.set_blocking(self._results, False)
        asyncio.get_running_loop().add_reader(self._results, self._on_done)

    def _read(self) -> bytes:
        if not (message := os.read(self._results, _DONE.size)):
            raise RuntimeError("the compute process has ended")
        return message

    def _on_done(self) -> None:
        slot, seconds = _DONE.unpack(self._read())
        self._waiting.pop(slot).set_result(seconds)

    async def run(self, tensor: TensorView) -> tuple[TensorView, float]:
        """One pass of a tensor, and its seconds."""
        slot = self._free.pop()
        self._places[slot][:] = tensor.data
        self._waiting[slot] = asyncio.get_running_loop().create_future()
        os.write(self._work, bytes([slot]))
        seconds = await self._waiting[slot]
        out = TensorView(tensor.dtype, tensor.shape, memoryview(bytes(self._places[slot])))
        self._free.append(slot)
        return out, seconds
