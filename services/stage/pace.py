"""How many tokens of a prompt may ride along with other sessions' decode steps, from what passes took. Pure.

Every pass of a pipeline takes its turn on the slowest stage, so a pass that takes twice as long as one of decode steps
alone doubles the time between the tokens of all sessions. That is about the bargain here: while a prompt arrives, the
others go at about half of their speed.
"""

from collections import deque
from statistics import median

# Time that prompts may add to a pass, as a part of what a pass of decode steps alone takes. Passes differ by a third
# from one another on a machine that others use too, and it is the slowest ones that streams notice.
STRETCH = 1.0
# Without any measurement, and never fewer than this: less is not worth what a chunk costs by being there.
SMALLEST = 8
# A pass of decode steps alone is measured again after that many with a chunk.
_REFRESH = 16


class Pace:
    """Medians over the last few passes, so that one that was disturbed moves nothing."""

    def __init__(self, stretch: float = STRETCH) -> None:
        self._stretch = stretch
        self._plain_ms: deque[float] = deque(maxlen=9)
        self._token_ms: deque[float] = deque(maxlen=5)
        self._measured: deque[int] = deque(maxlen=5)
        self._since_plain = 0

    def __repr__(self) -> str:
        plain = f"{median(self._plain_ms):.1f}" if self._plain_ms else "?"
        token = f"{median(self._token_ms):.2f}" if self._token_ms else "?"
        return f"<Pace plain={plain} ms token={token} ms chunk={self.chunk}>"

    def passed(self, ms: float, decodes: int, prompt_tokens: int) -> None:
        """A pass is through.

        Args:
            ms: what it took on the slowest stage.
            decodes: its decode steps.
            prompt_tokens: its tokens of prompts.
        """
        if not prompt_tokens:
            self._plain_ms.append(ms)
            self._since_plain = 0
            return
        self._since_plain += decodes > 0
        if prompt_tokens >= SMALLEST:
            # Reading the weights is paid by the decode steps; a disturbed measurement must not make tokens free.
            own = max(ms - median(self._plain_ms), ms / 8) if self._plain_ms else ms
            self._token_ms.append(own / prompt_tokens)
            self._measured.append(prompt_tokens)

    @property
    def chunk(self) -> int:
        """Tokens of prompts in a pass while sessions decode; at most twice as many as were measured lately."""
        if not self._plain_ms or not self._token_ms:
            return SMALLEST
        fitting = int(self._stretch * median(self._plain_ms) / median(self._token_ms))
        return max(SMALLEST, min(fitting, 2 * max(self._measured)))

    @property
    def stale(self) -> bool:
        """Whether the next pass with decode steps should go without prompts, to be measured."""
        return not self._plain_ms or self._since_plain >= _REFRESH
