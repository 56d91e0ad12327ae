"""How many requests find their model asleep, beside the memory that models take while nobody asks for them?

Streams of many models are made out of recorded traces of one hour (`traces.RULES`), with time stretched so that the hour becomes a
day. Over them run a fixed keep-alive at every timeout, the hybrid histogram policy of Shahrad et al. (USENIX ATC 2020), and ours in
the place of each fixed keep-alive. All of them see the past only; the first quarter is learned from and not counted.
"""

import asyncio
from dataclasses import replace

import numpy as np
from stagemesh.services.registry.preload.grid import EDGES  # type: ignore[import-not-found]

from bench import curves
from bench.options import Options, say
from bench.paired import Ratio, paired_ratio
from bench.preload_world import Curve, Streams, fixed, histogram, ours
from bench.result import Bound, Result, Series
from bench.traces import ABSENT, RULES, Trace, found, streams

DAY_S = 86_400.0
MODELS = 100
LOAD_S = 10.0
LEARN = 0.25
KEEP_S = [0.0, *EDGES[1:].tolist()]
"""Three timeouts an octave, from one second to a day and a half."""
RANGES_S = [60.0 * minutes for minutes in (5, 10, 20, 30, 60, 120, 240, 480)]
KEYS = ("preload_dominates_fixed", "preload_vs_histogram", "preload_vs_fixed_600_s")
_SAME = 1e-9


async def run(options: Options) -> Result:
    """Every trace that there is, split by every rule."""
    return await asyncio.to_thread(_run, options)


def _run(options: Options) -> Result:
    result = Result("preload", __doc__.splitlines()[0])
    traces = found(options.trace)
    if not traces:
        result.not_measured = dict.fromkeys(KEYS, ABSENT)
        return result
    shares: list[float] = []
    beside: dict[str, tuple[list[float], list[float]]] = {"histogram": ([], []), "fixed": ([], [])}
    panels: list[curves.Panel] = []
    for trace in traces:
        for rule in list(RULES)[: 1 if options.quick else None]:
            name = f"{trace.name}, {rule}"
            say(name)
            lines = _curves(trace, rule, options.quick)
            shares.append(dominated(*lines[::2]))
            _compare(result, name, lines, beside)
            panels.append(curves.Panel(name, [_line(each) for each in lines]))
            result.notes.append(
                f"{name}: at or below the fixed keep-alive at {shares[-1]:.1%} of its timeouts"
            )
    result.ratio(KEYS[0], Ratio(min(shares), min(shares), max(shares), len(shares)), Bound(1.0))
    for key, (mine, theirs) in zip(KEYS[1:], beside.values(), strict=True):
        if mine:
            result.ratio(key, paired_ratio(mine, theirs))
        else:
            result.not_measured[key] = "no setting of theirs had a cold start"
    result.notes += [
        f"{MODELS} models, {LOAD_S:g} s to load; {KEYS[1]}: cold starts at the histogram's own memory, all its ranges; "
        f"{KEYS[2]}: at the memory of a fixed keep-alive of about ten minutes",
        *(f"rule {rule}: {says}" for rule, says in RULES.items()),
    ]
    result.drawing = curves.svg(
        "preload",
        "models loaded and idle, in the mean",
        "share of requests that find their model asleep",
        panels,
    )
    return result


def _curves(trace: Trace, rule: str, quick: bool) -> tuple[Curve, Curve, Curve]:
    requests = trace.requests[:2000] if quick else trace.requests
    shorter = Trace(trace.name, requests)
    of = Streams.of(
        streams(shorter, rule, MODELS, DAY_S / max(shorter.length_s, 1.0)), learn=LEARN, load_s=LOAD_S
    )
    keep = KEEP_S[::6] if quick else KEEP_S
    lines = fixed(of, keep), histogram(of, RANGES_S[::4] if quick else RANGES_S), ours(of, keep)
    length = of.end_s - of.counted_from_s
    plain, rival, mine = (replace(each, memory_s=each.memory_s / length) for each in lines)
    return plain, rival, mine


def dominated(theirs: Curve, mine: Curve) -> float:
    """At what share of their settings ours, at their memory, has no more cold starts."""
    better = [
        mine.at(memory) <= cold + _SAME for memory, cold in zip(theirs.memory_s, theirs.cold, strict=True)
    ]
    return float(np.mean(better))


def _compare(
    result: Result,
    name: str,
    lines: tuple[Curve, Curve, Curve],
    beside: dict[str, tuple[list[float], list[float]]],
) -> None:
    plain, histograms, mine = lines
    for memory, cold in zip(histograms.memory_s, histograms.cold, strict=True):
        if cold > 0 and mine.at(memory) > 0:
            beside["histogram"][0].append(mine.at(memory))
            beside["histogram"][1].append(float(cold))
    nth = int(np.abs(np.asarray(plain.settings) - 600.0).argmin())
    memory = float(plain.memory_s[nth])
    if plain.cold[nth] > 0 and mine.at(memory) > 0:
        beside["fixed"][0].append(mine.at(memory))
        beside["fixed"][1].append(float(plain.cold[nth]))
    group = f"{name}: cold starts at the memory of a fixed keep-alive of {plain.settings[nth]:.0f} s"
    for each in (plain, histograms, mine):
        result.series.append(Series(group, each.name, "% of requests", [100 * each.at(memory)]))


def _line(curve: Curve) -> curves.Line:
    return curves.Line(curve.name, list(zip(curve.memory_s.tolist(), curve.cold.tolist(), strict=True)))
