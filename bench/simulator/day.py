"""A day of requests out of recorded hours, by a rule that anybody can repeat.

Each recorded hour is replayed 24 times, once an hour, so that what happens within it stays as it was. In hour h (0 at midnight) a request is kept with
the probability 0.35 + 0.65 x (1 - cos(2 pi (h - 4) / 24)) / 2: quiet at four in the morning, all of it at four in the afternoon. The
models are shared out evenly among the traces; within a trace a request's model follows from what it resembles (`traces.RULES`, "kin").
"""

import math
from collections.abc import Sequence
from random import Random

from bench.traces import Trace, models_of

HOURS = 24
Arrival = tuple[float, int, int, int]
"""Seconds since midnight, model, tokens of the prompt, tokens of the answer (1 at least)."""


def kept(hour: int) -> float:
    """The share of the recorded requests that come in an hour of the day."""
    return 0.35 + 0.65 * (1 - math.cos(2 * math.pi * (hour - 4) / HOURS)) / 2


def arrivals(
    traces: Sequence[Trace], models: int, *, hours: int = HOURS, share: float = 1.0, seed: int = 1
) -> list[Arrival]:
    """The requests of so many hours, by time; `share` thins them further."""
    rng = Random(seed)
    out: list[Arrival] = []
    for nth, trace in enumerate(traces):
        own = range(nth * models // len(traces), (nth + 1) * models // len(traces))
        chosen = models_of(trace, "kin", len(own), seed)
        scale = 3600.0 / max(trace.length_s, 1.0)
        for hour in range(hours):
            keep = kept(hour) * share
            out += [
                (3600.0 * hour + request.at_s * scale, own[model], request.prompt, max(1, request.answer))
                for request, model in zip(trace.requests, chosen, strict=True)
                if rng.random() < keep
            ]
    out.sort()
    return out
