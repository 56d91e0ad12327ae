"""The garbage collector's pauses: none for what a service made while it started, few for what is old, and all of them counted.

A full collection looks at every object of the process while nothing else of it runs: with the 100,000 that a router has
after its imports that is 0.1 to 0.3 s on a busy machine, every few seconds under load.
"""

import gc
import time

from stagemesh import metrics

# Collections of the middle generation to one of everything. Python's own is 10.
_OLD_EVERY = 100


def settle() -> None:
    """Leave what is there now out of all later collections, look at the old rarely, and count the pauses. Takes some 0.1 s."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _OLD_EVERY)
    _Pauses()


class _Pauses:
    """Counts what every collection takes, by generation."""

    def __init__(self) -> None:
        counter = metrics.counter(
            "stagemesh_gc_pause_seconds_total",
            "Time that the garbage collector stopped the process.",
            ("generation",),
        )
        self._seconds = [counter.labels(str(generation)) for generation in range(3)]
        self._began = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._seconds[info["generation"]].inc(time.perf_counter() - self._began)
