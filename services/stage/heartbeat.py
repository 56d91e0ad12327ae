"""Whether the other end of a link lives, judged by what it says while it owes something. Pure.

gRPC answers its pings outside of Python, so a replica whose event loop stands still looks well to them. The receiver of a
stream therefore says something twice a second while it holds frames or credits of it, and the sender gives it up when
it hears nothing for two and a half seconds. They are counted in the sender's own ticks: one that got no CPU itself, or
was stopped for an hour, has not waited.
"""

# A receiver that holds something says so that often; a sender counts in the same steps.
BEAT_S = 0.5
# A sender hears nothing for that many steps, and the receiver is taken for dead.
SILENT_BEATS = 5
SILENT_S = BEAT_S * SILENT_BEATS


class Listener:
    """The sender's end of one link."""

    def __init__(self) -> None:
        self._beats = 0

    def __repr__(self) -> str:
        return f"<Listener silent_beats={self._beats}>"

    def heard(self) -> None:
        """Something came, whatever it is."""
        self._beats = 0

    def tick(self, owes: bool) -> bool:
        """A step of time went by; whether the other end is dead.

        Args:
            owes: it has something to say: it holds frames, or has not answered the hello.
        """
        self._beats = self._beats + 1 if owes else 0
        return self._beats >= SILENT_BEATS
