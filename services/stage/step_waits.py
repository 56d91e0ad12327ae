"""How long steps wait at the head until they are in a pass. Pure.

By Little's law (J. D. C. Little, 1961) the mean wait is the time during which steps waited, over the steps that left: nothing has
to be kept for each of them.
"""


class StepWaits:
    """Counts for one head.

    Attributes:
        waited_us: microseconds, of all steps together.
        steps: that went into passes.
        waiting: steps that wait now.
    """

    def __init__(self) -> None:
        self.waited_us = 0.0
        self.steps = 0
        self.waiting = 0
        self._looked = 0.0

    def __repr__(self) -> str:
        return f"<StepWaits {self.waited_us / 1000:.1f} ms in {self.steps} steps, {self.waiting} wait>"

    def look(self, waiting: int, now: float) -> None:
        """So many wait from now on; `now` in seconds."""
        if self.waiting:
            self.waited_us += self.waiting * (now - self._looked) * 1e6
        self.waiting = waiting
        self._looked = now
