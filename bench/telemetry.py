"""What metrics and spans cost: tokens/s of 8 streams with all of them, beside the same processes without.

Two meshes that run the same code differ by up to 5 % for as long as they live, which would hide 2 %. So one mesh takes
turns with itself. On: its requests carry a sampled `traceparent`, and every process exports its spans to a receiver (a
process of its own, which keeps them unread); every metric is recorded. Off: the `traceparent` says not sampled, and
`switchable_metrics/sitecustomize.py`, first on the processes' import path, has replaced what the methods of a metric do by
nothing. stagemesh itself has no switch for metrics: they are always recorded.

`tiny` fp32, two stages of one thread, through the router, 8 streams of short generations back to back, so that opening,
closing and exporting count.
"""

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

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
ROUNDS = 6
TURN_S, QUICK_TURN_S = 5.0, 0.5
# Processes export once a second: spans of one turn are gone before the next.
PAUSE_S = 1.3
ON, OFF = "metrics and spans on", "both off"
SWITCHABLE = Path(__file__).with_name("switchable_metrics")


@dataclass(slots=True)
class Turn:
    """Tokens per second, and CPU seconds of the mesh's processes per thousand tokens."""

    rate: float
    cpu_s: float


async def run(options: Options) -> Result:
    """A B B A in each round."""
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
            load = _Load(running, model, f"127.0.0.1:{port}", QUICK_TURN_S if options.quick else TURN_S)
            for number in range(options.times(ROUNDS) + 1):
                found: dict[str, list[Turn]] = {ON: [], OFF: []}
                for name in (ON, OFF, OFF, ON):
                    found[name].append(await load.turn(name == ON))
                if number:  # the first one warmed up
                    for name, pair in found.items():
                        turns[name].append(pair)
                    say(", ".join(f"{name} {fmean(t.rate for t in found[name]):.0f} tok/s" for name in found))
            await load.close()
            result.notes.append(load.words())
    for unit, of in (("tok/s", "rate"), ("CPU s per 1,000 tokens", "cpu_s")):
        values = {n: [fmean(getattr(turn, of) for turn in pair) for pair in turns[n]] for n in turns}
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
        self._requests = 0
        self._spans = self._bytes = 0

    def words(self) -> str:
        """What was exported."""
        return f"{self._spans / self._requests:.0f} spans of {self._bytes / self._spans:.0f} bytes a request"

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def turn(self, on: bool) -> Turn:
        """One turn.

        Raises:
            RuntimeError: nothing was exported though it was on, or something though it was off.
        """
        for process in self._processes:
            process.send_signal(signal.SIGUSR2 if on else signal.SIGUSR1)
        spans, size = await counted(self._sink)
        before = self._cpu_s()
        tokens = 0
        ends = time.perf_counter() + self._seconds

        async def streams() -> None:
            nonlocal tokens
            while time.perf_counter() < ends:
                made = await self._generate(on)
                tokens += made

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(streams())
        taken = time.perf_counter() - started
        await asyncio.sleep(PAUSE_S)
        cpu_s = self._cpu_s() - before
        now, now_size = await counted(self._sink)
        if (now > spans) != on:
            raise RuntimeError(f"{now - spans} spans came while spans were {'on' if on else 'off'}")
        self._spans, self._bytes = self._spans + now - spans, self._bytes + now_size - size
        return Turn(tokens / taken, cpu_s / tokens * 1e3)

    async def _generate(self, on: bool) -> int:
        """Tokens of one generation."""
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
        self._requests += on
        trace, parent = random.getrandbits(128) | 1, random.getrandbits(64) | 1
        metadata = (("traceparent", f"00-{trace:032x}-{parent:016x}-{int(on):02x}"),)
        tokens = 0
        async for response in self._stub.Generate(request, metadata=metadata, timeout=60):
            tokens += len(response.tokens)
        return tokens

    def _cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)
