"""Times passes of one token for each of so many sessions through a loaded partition. Blocks; on the compute thread."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from stagemesh.errors import ResourceExhausted

from .partition.interface import Partition
from .partition.kv import KVPool, SessionKV
from .partition.ragged import Segment

__all__ = ["ROWS", "TRIES", "Pass", "best_ms", "passes"]

ROWS = (1, 8, 32)
# Repetitions, after one that is not counted; the best one counts.
TRIES = 5

Pass = Callable[[], float]


@contextmanager
def passes(model: Partition, pool: KVPool | None, rows: int) -> Iterator[Pass | None]:
    """A pass of one row for each of `rows` sessions that returns its seconds, to be called `TRIES` + 1 times at most.

    None where the pool has no room for the sessions now. What was reserved is free again afterwards.
    """
    held: list[SessionKV] = []
    try:
        if pool is not None and model.generates:
            for _ in range(rows):
                held.append(pool.reserve(TRIES + 1))
    except ResourceExhausted:
        _release(pool, held)
        yield None
        return
    position = 0

    @torch.inference_mode()
    def run() -> float:
        nonlocal position
        if held:
            segments = [Segment(start, 1, position, kv) for start, kv in enumerate(held)]
            position += 1
        else:
            segments = [Segment(0, rows, 0)]
        batch = model.probe(segments)
        started = time.perf_counter()
        model.forward(batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - started

    try:
        yield run
    finally:
        _release(pool, held)


def _release(pool: KVPool | None, held: Sequence[SessionKV]) -> None:
    for kv in held:
        if pool is not None:
            pool.release(kv)


def best_ms(model: Partition, pool: KVPool | None, rows: Sequence[int], budget_s: float) -> dict[int, float]:
    """Rows -> milliseconds of a whole pass, as many of them as the budget lets be measured, the first at least."""
    end = time.perf_counter() + budget_s
    found: dict[int, float] = {}
    for count in rows:
        with passes(model, pool, count) as one:
            if one is None:
                continue
            one()
            seconds = [one()]
            while len(seconds) < TRIES and time.perf_counter() < end:
                seconds.append(one())
            found[count] = min(seconds) * 1e3
        if time.perf_counter() >= end:
            break
    return found
