"""How many micro-batches of decode steps to keep under way, found by trying. Pure: the clock is an argument.

A pipeline of P stages on P machines wants P of them, so that each stage has one to compute. Stages that share a
machine's memory bandwidth read their weights at half the speed while both do, and twice as often as one large
micro-batch would: there fewer are faster. Which of the two holds shows in tokens per second only.
"""

import math
from dataclasses import dataclass

# Rounds (a token for each session) of one measurement, after one that lets the change settle.
_ROUNDS = 4
# A change must gain that much, or it is noise.
_GAIN = 1.05
# Measurements between one comparison and the next: more and more while nothing changes.
_SOON, _SELDOM = 2, 64


@dataclass(slots=True)
class _Load:
    """What is known for about so many sessions."""

    best: int
    # Whether it was compared with anything, or is what the nearest load says.
    compared: bool = False
    pause: int = _SOON
    wait: int = 0
    # Of the measurement before a comparison, tokens a second.
    before: float = 0.0
    candidate: int = 0
    # Which neighbour to compare with next.
    step: int = -1


class Depth:
    """The number to use now, for a pipeline of `stages`; `stages` of them to begin with."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._loads: dict[int, _Load] = {}
        self._bucket = 0
        self._started: float | None = None
        self._left = 0
        self._counted = 0

    def __repr__(self) -> str:
        known = ", ".join(
            f"{2**bucket}+: {load.best}" for bucket, load in sorted(self._loads.items()) if load.compared
        )
        return f"<Depth {self.now} of {self._stages} ({known})>"

    @property
    def now(self) -> int:
        """Micro-batches to keep under way: for a load that was never compared as many as for the nearest that was."""
        load = self._loads.get(self._bucket)
        if load is not None and (load.candidate or load.compared):
            return load.candidate or load.best
        return self._nearest()

    def _nearest(self) -> int:
        known = [bucket for bucket, load in self._loads.items() if load.compared]
        if not known:
            return self._stages
        return self._loads[min(known, key=lambda bucket: abs(bucket - self._bucket))].best

    def disturbed(self) -> None:
        """Something else than decode steps is under way: what was being measured means nothing."""
        self._started = None
        load = self._loads.get(self._bucket)
        if load is not None:
            load.candidate, load.before = 0, 0.0

    def token(self, now: float, sessions: int) -> None:
        """A token came back.

        Args:
            now: seconds, monotonic.
            sessions: that are decoding.
        """
        bucket = int(math.log2(max(1, sessions)))
        if bucket != self._bucket:
            self.disturbed()
            self._bucket = bucket
        if sessions < 2 or self._stages < 2:
            return
        load = self._loads.setdefault(bucket, _Load(self._stages))
        if self._started is None:
            # The first round settles: its tokens are counted down, not timed.
            self._started, self._counted = math.inf, 0
            self._left = sessions
            return
        self._left -= 1
        self._counted += 1
        if self._left > 0:
            return
        if self._started == math.inf:
            self._started, self._left, self._counted = now, _ROUNDS * sessions, 0
            return
        self._measured(load, self._counted / max(now - self._started, 1e-9))
        self._started = None

    def _measured(self, load: _Load, rate: float) -> None:
        if load.candidate:
            if rate > _GAIN * load.before:
                load.best, load.pause = load.candidate, _SOON
            else:
                load.pause = min(2 * load.pause, _SELDOM)
                load.step = -load.step
            load.candidate, load.before, load.wait, load.compared = 0, 0.0, load.pause, True
            return
        load.wait -= 1
        if load.wait > 0:
            return
        if not load.compared:
            load.best = self._nearest()
        if not 1 <= load.best + load.step <= self._stages:
            load.step = -load.step
        load.before, load.candidate = rate, load.best + load.step
