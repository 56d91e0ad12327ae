"""How fast do tensor frames cross between two processes, one way, with credits?

Contenders on the same kind of stream: the hand codec (`frame`), plain bytes that need no codec (`bytes`), and the
generated protobuf class (`protobuf`, `SerializeToString` and `FromString`). Each starts from a tensor's memory and
ends with a tensor's memory.
"""

import asyncio
import time
from collections.abc import Callable

import grpc.aio
import numpy as np

from bench.children import server
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio
from bench.peer import SERVICE
from bench.result import Bound, Result, Series
from stagemesh.grpc_server import create_channel
from stagemesh.malloc import keep_large_blocks
from stagemesh.tensor import TensorView, encode_frame
from stagemesh.v1.stage_pb2 import Feedback, Frame, Step, StepKind
from stagemesh.v1.tensor_pb2 import Tensor

SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "16 MiB": 2**24}
# Bytes sent in one measurement.
AMOUNT = 2**29
QUICK_AMOUNT = 2**25
FEWEST, MOST = 4, 2048
RUN_TIMEOUT_S = 120.0
ROUNDS = 7
SHARED_MEMORY = "the shared-memory lane is not built yet"


def _header(rows: int) -> Frame:
    step = Step(session=1, kind=StepKind.STEP_KIND_DECODE, position=7, tokens=rows, sample=True)
    return Frame(steps=[step], sent_unix_us=1)


def payloads(array: np.ndarray) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Contender -> method of the peer, and what makes one message from an F32 array `[rows, hidden]`."""
    rows, hidden = array.shape
    plain = array.tobytes()

    def frame() -> bytes:
        view = TensorView("F32", (rows, hidden), array.data.cast("B"))
        return encode_frame(_header(rows), view)

    def protobuf() -> bytes:
        message = _header(rows)
        message.tensor.CopyFrom(Tensor(dtype="F32", shape=(rows, hidden), data=array.tobytes()))
        return message.SerializeToString()

    return {"frame": ("Frame", frame), "bytes": ("Bytes", lambda: plain), "protobuf": ("Protobuf", protobuf)}


async def send(channel: grpc.aio.Channel, method: str, make: Callable[[], bytes], count: int) -> float:
    """Seconds from the first message to the credit for the last one."""
    call = channel.stream_stream(f"/{SERVICE}/{method}", None, Feedback.FromString)(timeout=RUN_TIMEOUT_S)
    responses = aiter(call)
    credit = (await anext(responses)).credits
    left = asyncio.Event()

    async def returned() -> None:
        nonlocal credit
        for _ in range(count):
            credit += (await anext(responses)).credits
            left.set()

    reader = asyncio.create_task(returned())
    started = time.perf_counter()
    for _ in range(count):
        while credit <= 0:
            left.clear()
            await left.wait()
        credit -= 1
        await call.write(make())
    await reader
    taken = time.perf_counter() - started
    await call.done_writing()
    return taken


async def run(options: Options) -> Result:
    """Measure every size with every contender, interleaved."""
    keep_large_blocks()  # as in the peer and in a stage, so every contender profits alike
    result = Result("transport", "tensor frames between two processes, one way with credits, GB/s")
    rates: dict[tuple[str, str], list[float]] = {}
    amount = QUICK_AMOUNT if options.quick else AMOUNT
    async with server("bench.peer") as port, create_channel(f"127.0.0.1:{port}") as channel:
        for label, size in SIZES.items():
            say(label)
            contenders = payloads(np.random.default_rng(3).random((size // 4096, 1024), dtype=np.float32))
            count = min(MOST, max(FEWEST, amount // size))
            for method, make in contenders.values():
                await send(channel, method, make, FEWEST)
            for _, name in interleaved(list(contenders), options.times(ROUNDS)):
                method, make = contenders[name]
                seconds = await send(channel, method, make, count)
                rates.setdefault((label, name), []).append(count * size / seconds / 1e9)
    for (label, name), values in rates.items():
        result.series.append(Series(label, name, "GB/s", values))
    frame_vs_bytes = {label: paired_ratio(rates[label, "frame"], rates[label, "bytes"]) for label in SIZES}
    worst = min(frame_vs_bytes, key=lambda label: frame_vs_bytes[label].value)
    result.ratio("frame_vs_grpc_bytes", frame_vs_bytes[worst], Bound(0.95))
    large = "16 MiB"
    result.ratio(
        "frame_vs_protobuf", paired_ratio(rates[large, "frame"], rates[large, "protobuf"]), Bound(2.0)
    )
    result.notes.append(f"frame_vs_grpc_bytes is the worst of the sizes ({worst}); " + _each(frame_vs_bytes))
    result.not_measured = {"shm_vs_tcp_socket": SHARED_MEMORY, "shm_vs_gloo": SHARED_MEMORY}
    return result


def _each(ratios: dict[str, Ratio]) -> str:
    return ", ".join(f"{label} {ratio.value:.2f}" for label, ratio in ratios.items())
