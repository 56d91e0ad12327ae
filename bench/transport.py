"""How fast do tensors cross between two processes, one way, with credits?

Contenders on the same kind of gRPC stream: the link that stages use between hosts, with the hand codec (`frame`); plain
bytes that need no codec and are not even copied out of a tensor (`bytes`), the same but copied out of it, and the
generated protobuf class (`protobuf`, `SerializeToString` and `FromString`), a message for each. For the largest size
also the shared-memory lane as replicas on one host use it (`shm`), against a raw socket and gloo. All but `bytes`
start from a tensor's memory, and all end with one.
"""

import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from bench import gloo_peer, socket_peer
from bench.children import server
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio
from bench.result import Bound, Result, Series
from bench.transport_stream import Linked, Stream, contenders
from services.stage.relay import CREDIT_BATCH
from stagemesh.grpc_server import create_channel
from stagemesh.malloc import keep_large_blocks

SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "16 MiB": 2**24}
LARGE = "16 MiB"
# Bytes sent in one turn, or fewer in that many messages, and a contender's turns in a round: many short ones, since
# within one of half a second the machine's speed moves by a third.
AMOUNT, MOST = 2**28, 1024
QUICK_AMOUNT = 2**25
TURNS, QUICK_TURNS = 12, 1
ROUNDS = 9

# Sends so many tensors; seconds.
Send = Callable[[int], Awaitable[float]]


async def run(options: Options) -> Result:
    """Measure every size with every contender, interleaved."""
    keep_large_blocks()  # as in the peers and in a stage, so every contender profits alike
    result = Result("transport", "tensors between two processes, one way with credits, GB/s")
    rates: dict[tuple[str, str], list[float]] = {}
    amount, turns = (QUICK_AMOUNT, QUICK_TURNS) if options.quick else (AMOUNT, TURNS)
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(server("bench.peer"))
        channel = await stack.enter_async_context(create_channel(f"127.0.0.1:{port}"))
        raw_port = await stack.enter_async_context(server("bench.socket_peer"))
        raw = stack.enter_context(socket_peer.connected(raw_port))
        store = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store")
        await stack.enter_async_context(server("bench.gloo_peer", "--store", store))
        gloo = stack.enter_context(gloo_peer.joined(store))
        for label, size in SIZES.items():
            say(label)
            array = np.random.default_rng(3).random((size // 4096, 1024), dtype=np.float32)
            # The last credit of a turn comes with as many as a stage gives back at once.
            count = CREDIT_BATCH * max(1, min(MOST, amount // size) // CREDIT_BATCH)
            async with contextlib.AsyncExitStack() as streams:
                linked = await streams.enter_async_context(Linked(f"127.0.0.1:{port}", array))
                ways: dict[str, Send] = {"frame": linked.send}
                for name, contender in contenders(array).items():
                    stream = await streams.enter_async_context(Stream(channel, contender))
                    ways[name] = stream.send
                ways["tcp socket"] = _blocking(raw.send, array)
                ways["gloo"] = _blocking(gloo.send, array)
                # One round more than is counted: in the first the heaps grow to what they need.
                rounds = options.times(ROUNDS) + 1
                took = {name: [0.0] * rounds for name in ways}
                for turn, name in interleaved(list(ways), rounds * turns):
                    took[name][turn // turns] += await ways[name](count)
                for name, each in took.items():
                    rates[label, name] = [turns * count * size / seconds / 1e9 for seconds in each[1:]]
    for (label, name), values in rates.items():
        result.series.append(Series(label, name, "GB/s", values))
    frame_vs_bytes = {label: paired_ratio(rates[label, "frame"], rates[label, "bytes"]) for label in SIZES}
    worst = min(frame_vs_bytes, key=lambda label: frame_vs_bytes[label].value)
    result.ratio("frame_vs_grpc_bytes", frame_vs_bytes[worst], Bound(0.95))
    result.ratio(
        "frame_vs_protobuf", paired_ratio(rates[LARGE, "frame"], rates[LARGE, "protobuf"]), Bound(2.0)
    )
    for key, name, bound in (
        ("shm_vs_tcp_socket", "tcp socket", Bound(1.5)),
        ("shm_vs_gloo", "gloo", Bound(1.2)),
        ("shm_vs_frame", "frame", None),
    ):
        result.ratio(key, paired_ratio(rates[LARGE, "shm"], rates[LARGE, name]), bound)
    copied = {
        label: paired_ratio(rates[label, "frame"], rates[label, "bytes of the tensor"]) for label in SIZES
    }
    result.notes.append(f"frame_vs_grpc_bytes is the worst of the sizes ({worst}); {_each(frame_vs_bytes)}")
    result.notes.append(f"against bytes that are copied out of the tensor: {_each(copied)}")
    return result


def _blocking(run: Callable[[np.ndarray, int], float], array: np.ndarray) -> Send:
    async def sent(count: int) -> float:
        return run(array, count)

    return sent


def _each(ratios: dict[str, Ratio]) -> str:
    return ", ".join(f"{label} {ratio.value:.2f}" for label, ratio in ratios.items())
