"""What metrics and spans cost: tokens/s of 8 streams with all of them, beside the same processes without.

Two meshes that run the same code differ by up to 5 % for as long as they live, which would hide 2 %. So one mesh takes
turns with itself. On: its requests carry a sampled `traceparent`, and every process exports its spans to a receiver (a
process of its own, which keeps them unread); every metric is recorded. Off: the `traceparent` says not sampled, and
`switchable_metrics/sitecustomize.py`, first on the processes' import path, has replaced what the methods of a metric do by
nothing. stagemesh itself has no switch for metrics: they are always recorded.

`tiny` fp32, two stages of one thread, through the router, 8 streams of short generations back to back, so that opening,
closing and exporting count. They run on from turn to turn, and what comes in the first moments of one is not counted.
"""

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Self

import psutil

from bench.children import server
from bench.meshes import deployed, mesh, prompts
from bench.options import Options, say
from bench.otlp_sink import counted
from bench.paired import paired_ratio
from bench.result import Bound, Result, Series
from stagemesh.grpc_server import create_channel
from stagemesh.local import LocalMesh
from stagemesh.v1 import inference_pb2, inference_pb2_grpc

STREAMS = 8
TOKENS_IN, TOKENS_OUT = 16, 64
ROUNDS = 3
# A B B A so many times is a round: the mesh's own rate wanders by a tenth within ten seconds, and a hundredth is looked for.
TURNS, QUICK_TURNS = 12, 1
TURN_S, QUICK_TURN_S = 3.0, 1.3
# Processes export once a second: by then spans of the turn before are gone, and those of this one are on their way as in any other second.
SETTLE_S = 1.5
ON, OFF = "metrics and spans on", "both off"
SWITCHABLE = Path(__file__).with_name("switchable_metrics")


@dataclass(slots=True)
class Turn:
    """Tokens per second, and CPU seconds of the mesh's processes per thousand tokens."""

    rate: float
    cpu_s: float


async def run(options: Options) -> Result:
    """A B B A in each round, several times."""
    result = Result(
        "telemetry", f"{STREAMS} streams of {TOKENS_IN} + {TOKENS_OUT} tokens back to back, tiny fp32"
    )
    path = os.pathsep.join(filter(None, (str(SWITCHABLE), os.environ.get("PYTHONPATH", ""))))
    turns: dict[str, list[list[Turn]]] = {ON: [], OFF: []}
    async with server("bench.otlp_sink") as port:
        env = {
            "PYTHONPATH": path,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        async with mesh(2, env=env) as running, deployed(running, "tiny", "fp32", 2) as model:
            seconds = QUICK_TURN_S if options.quick else TURN_S
            async with _Load(running, model, f"127.0.0.1:{port}", seconds) as load:
                for name in (ON, OFF):  # warms up
                    await load.turn(name == ON)
                for _ in range(options.times(ROUNDS)):
                    found: dict[str, list[Turn]] = {ON: [], OFF: []}
                    for _ in range(QUICK_TURNS if options.quick else TURNS):
                        for name in (ON, OFF, OFF, ON):
                            found[name].append(await load.turn(name == ON))
                        so_far = {name: fmean(turn.rate for turn in found[name]) for name in found}
                        say(", ".join(f"{name} {rate:.0f} tok/s" for name, rate in so_far.items()))
                    for name, of_one in found.items():
                        turns[name].append(of_one)
            result.notes.append(load.words())
    for unit, of in (("tok/s", "rate"), ("CPU s per 1,000 tokens", "cpu_s")):
        values = {n: [fmean(getattr(turn, of) for turn in of_round) for of_round in turns[n]] for n in turns}
        group = "throughput" if of == "rate" else "CPU time of the mesh"
        for name in values:
            result.series.append(Series(group, name, unit, values[name]))
        if of == "rate":
            result.ratio("telemetry_vs_off", paired_ratio(values[ON], values[OFF]), Bound(0.98))
        else:
            result.ratio("telemetry_cpu_vs_off", paired_ratio(values[ON], values[OFF]))
    return result


class _Load:
    """Turns of the same load, on or off; checks that on is on and off is off."""

    def __init__(self, running: LocalMesh, model: str, sink: str, seconds: float) -> None:
        services = [running.service_process(kind) for kind in ("router", "cache", "registry")]
        self._processes = [psutil.Process(one.pid) for one in (*services, *running.stage_processes)]
        self._channel = create_channel(running.grpc_address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._model = model
        self._sink = sink
        self._seconds = seconds
        self._prompts = prompts("tiny", 512, TOKENS_IN)
        self._next = 0
        # All that were answered, and those answered while it was on.
        self._requests = self._of_on = 0
        self._spans = self._bytes = 0
        self._on = True
        self._tokens = 0
        self._streams: list[asyncio.Task[None]] = []

    def words(self) -> str:
        """What was exported."""
        return f"{self._spans / self._of_on:.0f} spans of {self._bytes / self._spans:.0f} bytes a request"

    async def __aenter__(self) -> Self:
        self._streams = [asyncio.create_task(self._stream()) for _ in range(STREAMS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        await self._channel.close()

    async def turn(self, on: bool) -> Turn:
        """One turn.

        Raises:
            RuntimeError: nothing was exported though it was on, or something though it was off.
            AioRpcError: a stream failed.
        """
        for process in self._processes:
            process.send_signal(signal.SIGUSR2 if on else signal.SIGUSR1)
        self._on = on
        await asyncio.sleep(SETTLE_S)
        spans, size = await counted(self._sink)
        requests, tokens, cpu_s = self._requests, self._tokens, self._cpu_s()
        started = time.perf_counter()
        await asyncio.sleep(self._seconds)
        taken = time.perf_counter() - started
        tokens, cpu_s = self._tokens - tokens, self._cpu_s() - cpu_s
        for stream in self._streams:
            if stream.done():
                stream.result()
        now, now_size = await counted(self._sink)
        requests = self._requests - requests
        if (now - spans > requests) != on:  # on it is two dozen of each; a few may come late
            raise RuntimeError(
                f"{now - spans} spans of {requests} requests came while spans were {'on' if on else 'off'}"
            )
        if on:
            self._of_on += requests
        self._spans, self._bytes = self._spans + now - spans, self._bytes + now_size - size
        return Turn(tokens / taken, cpu_s / tokens * 1e3)

    async def _stream(self) -> None:
        """Generations back to back."""
        while True:
            request = inference_pb2.GenerateRequest(
                model=self._model,
                max_tokens=TOKENS_OUT,
                temperature=0,
                ignore_eos=True,
                cache_no_lookup=True,
                cache_no_store=True,
            )
            request.tokens.ids.extend(self._prompts[self._next % len(self._prompts)])
            self._next += 1
            trace, parent = random.getrandbits(128) | 1, random.getrandbits(64) | 1
            metadata = (("traceparent", f"00-{trace:032x}-{parent:016x}-{int(self._on):02x}"),)
            async for response in self._stub.Generate(request, metadata=metadata, timeout=60):
                self._tokens += len(response.tokens)
            self._requests += 1

    def _cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)
