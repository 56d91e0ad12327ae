"""Being told once, when the last of several things is done."""

from collections.abc import Callable


class Countdown:
    """Calls `then` once when it was `done` as often as it was told of `more`, and once beyond."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._left = 1

    def more(self) -> Callable[[], None]:
        """One more to wait for: what it returns says that it is done."""
        self._left += 1
        return self.done

    def done(self) -> None:
        """One is done."""
        self._left -= 1
        if not self._left:
            self._then()
