"""Stop strings over a stream of text: pure, and independent of how the text is cut into chunks."""

from collections.abc import Sequence


class StopStrings:
    """Finds the stop string that completes first; where two complete together, the one that started first.

    Text that could still be the start of a stop string is held back, everything else goes out at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self._stopped = False

    def __repr__(self) -> str:
        return f"StopStrings({len(self._stops)} stops, held={len(self._held)}, stopped={self._stopped})"

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that became final and whether a stop string was found; after that, nothing comes."""
        if self._stopped:
            return "", True
        if not self._stops:
            return text, False
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return buffer[: min(found)[1]], True
        keep = self._possible_start(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """Return what was held back: the text ended before any stop string did."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, buffer: str) -> int:
        """Length of the longest suffix of `buffer` that begins a stop string."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            suffix = buffer[-length:]
            if any(len(stop) > length and stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
