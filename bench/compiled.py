"""Is `torch.compile` worth its compile time at load? Against plain layers, packed linears, and a stage's own fast path.

Every contender is a process with one thread that decodes through half of `small`: hidden states in, eight layers and the
norm, keys and values of 64 to 127 positions, 1, 4 or 8 sessions of one length. Contenders: transformers' layers with
the cache of its `generate` (eager); the same with packed linear layers; the partition as a stage loads it; and transformers'
layers compiled by inductor with frozen weights and a cache of fixed size, for each number of rows anew.
"""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from statistics import mean
from typing import Any
from unittest import mock

import grpc.aio

from bench.children import server
from bench.meshes import DTYPES
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio, quartiles
from bench.result import Result, Series
from stagemesh.grpc_server import create_channel

SERVICE = "bench.Compiled"
EAGER, PACKED, STAGE = "eager", "packed", "stage"
# What `torch.compile` is told, besides freezing.
INDUCTOR: dict[str, dict[str, Any]] = {"inductor": {}}
# Positions of the decode steps; after the last comes the first again.
BEGIN, END = 64, 128
ROWS = (1, 4, 8)
# Greedy tokens compared between fast and plain.
NEW = 64
ROUNDS, PASSES, QUICK_PASSES = 7, 25, 3
# Compiling takes most of a minute for each number of rows.
_TIMEOUT_S = 600.0


class Way:
    """A contender's process, seen from here."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def _call(self, method: str, **request: int) -> Any:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", None, None)
        return json.loads(await call(json.dumps(request).encode(), timeout=_TIMEOUT_S))

    async def prepare(self, rows: int) -> dict[str, Any]:
        """Load, warm up, compile for this number of rows; what that took."""
        return dict(await self._call("Prepare", rows=rows))

    async def run(self, rows: int, passes: int) -> float:
        """Median milliseconds of a pass."""
        return quartiles(await self._call("Run", rows=rows, passes=passes))[1]

    async def agree(self, new: int) -> dict[str, list[float]]:
        """See `agreement`."""
        return dict(await self._call("Agree", new=new))


@dataclass(slots=True)
class Found:
    """Of one contender: milliseconds of a pass by rows, a value per round; what preparing took; its memory."""

    ms: dict[int, list[float]] = field(default_factory=lambda: {rows: [] for rows in ROWS})
    prepare_s: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    fused: bool = False
    agreement: dict[str, list[float]] = field(default_factory=dict)


async def run(options: Options) -> Result:
    """Measure every dtype, number of rows and contender, interleaved."""
    result = Result("compiled", "a decode pass through half of `small` on one thread")
    for dtype in ("fp32",) if options.quick else DTYPES:
        # A cache of its own: else a second run would measure how fast compiled code is found again.
        with (
            tempfile.TemporaryDirectory(prefix="stagemesh-bench-") as cache,
            mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": cache}),
        ):
            _report(result, dtype, await _measure(options, dtype))
    result.notes.append(
        "above 1: faster than what it is compared with. Memory: resident, of the whole process"
    )
    return result


async def _measure(options: Options, dtype: str) -> dict[str, Found]:
    """All contenders of one dtype."""
    names = [EAGER, PACKED, STAGE, *(list(INDUCTOR)[:1] if options.quick else INDUCTOR)]
    found = {name: Found() for name in names}
    ways: dict[str, Way] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, one in found.items():
            args = ["--way", name, "--model", "micro" if options.quick else "small", "--dtype", DTYPES[dtype]]
            port = await stack.enter_async_context(server("bench.compiled_child", *args))
            ways[name] = Way(await stack.enter_async_context(create_channel(f"127.0.0.1:{port}")))
            for rows in ROWS:
                about = await ways[name].prepare(rows)
                one.prepare_s.append(about["prepare_s"])
                one.memory_mib, one.fused = about["rss_bytes"] / 2**20, about["fused"]
            say(f"{dtype} {name}: {sum(one.prepare_s):.1f} s to prepare, {one.memory_mib:.0f} MiB")
        for rows in ROWS:
            for _, name in interleaved(names, options.times(ROUNDS)):
                taken = await ways[name].run(rows, QUICK_PASSES if options.quick else PASSES)
                found[name].ms[rows].append(taken)
            say(f"{dtype}, {rows} rows: {options.times(ROUNDS)} rounds")
        found[STAGE].agreement = await ways[STAGE].agree(4 if options.quick else NEW)
    return found


def _report(result: Result, dtype: str, found: dict[str, Found]) -> None:
    """Bars and ratios of one dtype."""
    stage = "fused" if found[STAGE].fused else "stage"
    for rows in ROWS:
        group = f"{dtype}, {rows} row{'' if rows == 1 else 's'}: a pass"
        result.series += [Series(group, name, "ms", one.ms[rows]) for name, one in found.items()]
    group = f"{dtype}: the first passes of a number of rows, compiling included"
    result.series += [Series(group, name, "s", one.prepare_s) for name, one in found.items()]
    result.series += [
        Series(f"{dtype}: memory", name, "MiB", [one.memory_mib]) for name, one in found.items()
    ]
    for ours, theirs, key in (
        ("inductor", EAGER, "inductor_vs_eager"),
        (PACKED, EAGER, "packed_vs_eager"),
        (STAGE, EAGER, f"{stage}_vs_eager"),
        (STAGE, "inductor", f"{stage}_vs_inductor"),
    ):
        for rows in ROWS:
            ratio = paired_ratio(found[theirs].ms[rows], found[ours].ms[rows])
            result.ratio(f"{key}_{rows}_{dtype}", ratio)
    agreement = found[STAGE].agreement
    for name, key in (("greedy", "tokens_equal"), ("next", "next_token_equal")):
        low, middle, high = quartiles(agreement[name])
        result.ratio(f"{key}_fast_vs_plain_{dtype}", Ratio(middle, low, high, len(agreement[name])))
    result.notes.append(
        f"{dtype}: tokens equal, fast and plain: {mean(agreement['greedy']):.1%} of all, each going on with its own; "
        f"{mean(agreement['next']):.1%} after the same tokens, logits at most {max(agreement['logits']):.2g} apart"
    )
