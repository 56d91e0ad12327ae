"""What prompts and decode steps cost on a replica, as routers weigh a queue against a prefix that is there. Pure."""

EWMA = 0.2
"""Of the moving average of a pass of decode steps."""
PROMPT_TOKENS = 1024.0
"""The cost of a prompt's token is that of about the last so many of them."""
LEAST_SHARE = 1 / 8
"""Of a pass that prompts are charged with at least, however long passes of decode steps took lately."""


class PassCosts:
    """Moving averages of what passes took.

    Attributes:
        decode_us: microseconds of a pass of decode steps only; 0 while unknown.
    """

    __slots__ = ("_tokens", "_us", "decode_us")

    def __init__(self) -> None:
        self.decode_us = 0.0
        # Of passes with prompts, fading: what their tokens took beyond a pass of decode steps, and how many there were.
        self._us = self._tokens = 0.0

    def __repr__(self) -> str:
        return f"<PassCosts decode={self.decode_us:.0f} us token={self.token_us:.1f} us>"

    @property
    def token_us(self) -> float:
        """Microseconds that a token of a prompt adds; 0 while unknown. Short ends of prompts hardly move it."""
        return self._us / self._tokens if self._tokens else 0.0

    def passed(self, us: float, prompt_tokens: int) -> None:
        """A pass took `us`; so many of its rows were tokens of prompts, the others decode steps."""
        if not prompt_tokens:
            self.decode_us = us if not self.decode_us else self.decode_us + EWMA * (us - self.decode_us)
            return
        keep = 0.5 ** (prompt_tokens / PROMPT_TOKENS)
        self._us = self._us * keep + max(us - self.decode_us, us * LEAST_SHARE)
        self._tokens = self._tokens * keep + prompt_tokens
