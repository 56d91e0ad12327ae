"""What every benchmark is told."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """`quick` shrinks every size until a run only shows that it works; `rounds` replaces a benchmark's own number.
    `trace` is the file or folder to replay, where a benchmark replays something recorded.
    """

    quick: bool = False
    rounds: int = 0
    trace: Path | None = None

    def times(self, usual: int) -> int:
        """How many rounds to run when the benchmark's own number is `usual`."""
        return self.rounds or (1 if self.quick else usual)


def say(line: str) -> None:
    """Progress, for whoever waits; never on standard output, which may be JSON."""
    print(f"  {line}", file=sys.stderr, flush=True)
