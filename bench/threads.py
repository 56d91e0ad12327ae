"""One process with an event loop and a compute thread, or a compute process beside a gRPC process?

Each contender is a stage cut down to its threads (`threads_child`): frames come in on a gRPC stream, four sessions decode
through half of `small`, frames go out; two frames are under way, so it always has work. Meanwhile 4 KiB frames are sent
around its event loop, four milliseconds apart. Measured on one stage alone and on two side by side, each with one
compute thread; also with another switch interval of the interpreter, with gRPC on poll() instead of epoll, and with the
compute thread on a core that the process's other threads keep off.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import mock

import grpc.aio
import numpy as np

from bench.checkpoints import SHAPES
from bench.children import server
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Result, Series
from bench.threads_child import SERVICE
from bench.threads_pipe import ROWS, SLOTS
from stagemesh.grpc_server import create_channel
from stagemesh.tensor import ITEM_BYTES, TensorView, decode_frame, encode_frame
from stagemesh.v1.stage_pb2 import Frame

DTYPES = {"F32": "fp32", "BF16": "bf16"}
ROUNDS = 5
WINDOW_S, QUICK_WINDOW_S = 1.5, 0.3
PING_EVERY_S = 0.004
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A layout of a stage, and how its interpreter and gRPC are set."""

    name: str
    layout: str
    plain: bool = False
    switch_s: float = 0.005
    poll: bool = False
    pinned: bool = False

    @property
    def kind(self) -> "Kind":
        """Contenders of one kind share their processes."""
        return self.layout, self.plain, self.poll, self.pinned


ONE = Contender("one process", "one")
TWO = Contender("two processes", "two")
SHORT = Contender("one, GIL switch 0.5 ms", "one", switch_s=0.0005)
POLL = Contender("one, gRPC polls", "one", poll=True)
PINNED = Contender("one, compute on its core", "one", pinned=True)
ONE_PLAIN = Contender("one, plain torch", "one", plain=True)
TWO_PLAIN = Contender("two, plain torch", "two", plain=True)
CONTENDERS = (ONE, TWO, SHORT, POLL, PINNED, ONE_PLAIN, TWO_PLAIN)


# What makes a process of its own necessary: the layout, plain, poll, pinned.
Kind = tuple[str, bool, bool, bool]


@dataclass(slots=True)
class Found:
    """What one contender did, a value per round."""

    per_s: list[float] = field(default_factory=list)
    pass_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    ping_p50_us: list[float] = field(default_factory=list)
    ping_p99_us: list[float] = field(default_factory=list)


class Stage:
    """One cut-down stage, seen from here."""

    def __init__(self, channel: grpc.aio.Channel, frame: bytes) -> None:
        self._channel = channel
        self._frame = frame

    def _stream(self, method: str) -> grpc.aio.StreamStreamCall:
        return self._channel.stream_stream(f"/{SERVICE}/{method}", None, None)(timeout=_TIMEOUT_S)

    async def set_switch_interval(self, seconds: float) -> None:
        """Set the interpreter's switch interval there."""
        await self._channel.unary_unary(f"/{SERVICE}/SwitchInterval", None, None)(str(seconds).encode())

    async def usage(self) -> float:
        """CPU seconds so far."""
        return float(await self._channel.unary_unary(f"/{SERVICE}/Usage", None, None)(b""))

    async def work(self, until: float) -> list[float]:
        """Keep `SLOTS` frames under way; milliseconds of each pass."""
        call = self._stream("Work")
        taken: list[float] = []
        for _ in range(SLOTS):
            await call.write(self._frame)
        under_way = SLOTS
        async for answer in call:
            frame, _ = decode_frame(answer)
            taken.append(frame.hops[0].compute_us / 1000)
            if time.perf_counter() < until:
                await call.write(self._frame)
            else:
                under_way -= 1
                if not under_way:
                    break
        await call.done_writing()
        return taken

    async def ping(self, until: float) -> list[float]:
        """Microseconds of each frame around the event loop there."""
        call, frame = self._stream("Ping"), _frame(1, 1024, "F32")
        taken: list[float] = []
        answers = aiter(call)
        while (started := time.perf_counter()) < until:
            await call.write(frame)
            await anext(answers)
            ended = time.perf_counter()
            taken.append((ended - started) * 1e6)
            await asyncio.sleep(max(0.0, PING_EVERY_S - (ended - started)))
        await call.done_writing()
        return taken


async def run(options: Options) -> Result:
    """Measure every contender on one stage and on two, interleaved."""
    result = Result("threads", f"{ROWS} sessions decode through half of `small`, one thread a stage")
    model, window_s = ("tiny", QUICK_WINDOW_S) if options.quick else ("small", WINDOW_S)
    for dtype in list(DTYPES)[:1] if options.quick else DTYPES:
        async with contextlib.AsyncExitStack() as stack:
            stages = await _start(stack, model, dtype)
            found = {(count, one.name): Found() for count in (1, 2) for one in CONTENDERS}
            idle: list[float] = []
            for count in (1, 2):
                # One round more than is counted: the first warms up.
                for number, one in interleaved(CONTENDERS, options.times(ROUNDS) + 1):
                    used = stages[one.kind][:count]
                    measured = await _measure(used, one, window_s)
                    if number:
                        _add(found[count, one.name], measured)
                say(f"{dtype}, {count} stage(s): {options.times(ROUNDS)} rounds")
            until = time.perf_counter() + window_s
            idle = await stages[ONE.kind][0].ping(until)
        _report(result, DTYPES[dtype], found, idle)
    # The worse of the dtypes, on as many stages as cores.
    for key, worst in (("one_process_vs_two_throughput", min), ("one_process_vs_two_ping_p99", max)):
        ratios = [
            result.ratios[f"{key}_{name}"] for name in DTYPES.values() if f"{key}_{name}" in result.ratios
        ]
        result.ratio(key, worst(ratios, key=lambda ratio: ratio.value))
    result.notes.append(
        "throughput above 1 and ping below 1: one process is better. Passes are of 4 rows, 64 to 127 positions"
    )
    return result


async def _start(stack: contextlib.AsyncExitStack, model: str, dtype: str) -> dict[Kind, list[Stage]]:
    """Two stages of each kind that must be a process of its own."""
    frame = _frame(ROWS, SHAPES[model].hidden, dtype)
    stages: dict[Kind, list[Stage]] = {}
    for one in CONTENDERS:
        kind = one.kind
        if kind in stages:
            continue
        args = [
            "--layout",
            one.layout,
            "--model",
            model,
            "--dtype",
            dtype,
            *(["--plain"] if one.plain else []),
        ]
        with mock.patch.dict(os.environ, {"GRPC_POLL_STRATEGY": "poll"} if one.poll else {}):
            ports = [
                await stack.enter_async_context(
                    server("bench.threads_child", *args, *(["--core", str(core)] if one.pinned else []))
                )
                for core in (0, 1)
            ]
        channels = [await stack.enter_async_context(create_channel(f"127.0.0.1:{port}")) for port in ports]
        stages[kind] = [Stage(channel, frame) for channel in channels]
    return stages


async def _measure(stages: Sequence[Stage], one: Contender, window_s: float) -> Found:
    """One window of work and pings on all of these stages together."""
    for stage in stages:
        await stage.set_switch_interval(one.switch_s)
    before = [await stage.usage() for stage in stages]
    started = time.perf_counter()
    until = started + window_s
    worked, pinged = await asyncio.gather(
        asyncio.gather(*(stage.work(until) for stage in stages)),
        asyncio.gather(*(stage.ping(until) for stage in stages)),
    )
    taken = time.perf_counter() - started
    after = [await stage.usage() for stage in stages]
    passes = [ms for each in worked for ms in each]
    pings = [us for each in pinged for us in each]
    cpu = sum(b - a for a, b in zip(before, after, strict=True))
    return Found(
        [len(passes) / taken],
        [float(np.median(passes))],
        [cpu * 1000 / len(passes)],
        [float(np.percentile(pings, 50))],
        [float(np.percentile(pings, 99))],
    )


def _add(found: Found, measured: Found) -> None:
    for name in Found.__slots__:
        getattr(found, name).extend(getattr(measured, name))


def _report(result: Result, dtype: str, found: dict[tuple[int, str], Found], idle: list[float]) -> None:
    """Bars for each contender and number of stages, and the ratios."""
    for title, name, unit in (
        ("passes per second", "per_s", "/s"),
        ("one pass", "pass_ms", "ms"),
        ("CPU time per pass, all threads", "cpu_ms", "ms"),
        ("ping while computing, median", "ping_p50_us", "us"),
        ("ping while computing, 99th percentile", "ping_p99_us", "us"),
    ):
        for count in (1, 2):
            group = f"{dtype}, {count} stage{'s' if count > 1 else ''}: {title}"
            result.series += [
                Series(group, one.name, unit, getattr(found[count, one.name], name)) for one in CONTENDERS
            ]
    result.notes.append(
        f"{dtype}: ping of an idle stage p50 {np.percentile(idle, 50):.0f} us, p99 {np.percentile(idle, 99):.0f} us"
    )
    for count in (2, 1):
        for ours, theirs, prefix in (
            (ONE, TWO, "one_process_vs_two"),
            (ONE_PLAIN, TWO_PLAIN, "one_process_vs_two_plain"),
            (SHORT, ONE, "switch_interval_short_vs_default"),
            (POLL, ONE, "grpc_poll_vs_epoll"),
            (PINNED, ONE, "pinned_vs_not"),
        ):
            a, b = found[count, ours.name], found[count, theirs.name]
            suffix = f"_{dtype}" + ("_alone" if count == 1 else "")
            result.ratio(f"{prefix}_throughput{suffix}", paired_ratio(a.per_s, b.per_s))
            result.ratio(f"{prefix}_ping_p99{suffix}", paired_ratio(a.ping_p99_us, b.ping_p99_us))


def _frame(rows: int, hidden: int, dtype: str) -> bytes:
    """A frame of small random activations."""
    values = np.random.default_rng(5).standard_normal((rows, hidden), dtype=np.float32)
    raw = values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    assert len(raw) == rows * hidden * ITEM_BYTES[dtype]
    return encode_frame(Frame(), TensorView(dtype, (rows, hidden), memoryview(raw)))
