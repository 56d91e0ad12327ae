"""What of prompts a pool holds, told as changes: to others who follow it, each from where it last was. Pure.

Changes are numbered. The last ones are remembered, so that a follower gets only what it missed; who is further behind, or
new, gets everything. What a report says of a block is how it stands now, so a block that came and went in between is
only said to be gone, and a report that is read twice does no harm.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from stagemesh.prefix import SHORT_BYTES
from stagemesh.v1.stage_pb2 import PrefixReport

LOG = 65536
"""Changes remembered: a prompt of a million tokens."""
PART = 32768
"""Blocks of one message."""


@dataclass(frozen=True, slots=True)
class Report:
    """What changed from `since` up to `sequence`; `full` when it is everything that is held, whatever was known before."""

    since: int
    sequence: int
    full: bool
    held: list[bytes]
    dropped: list[bytes]


class Holdings:
    """The changes of a table of digests.

    Args:
        table: whose keys are the digests held now.
        log: changes remembered.
    """

    def __init__(self, table: Mapping[bytes, int], log: int = LOG) -> None:
        self.sequence = 0
        self._table = table
        self._log: deque[bytes] = deque(maxlen=log)
        self._listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Holdings {len(self._table)} blocks, change {self.sequence}, {len(self._listeners)} listen>"

    @property
    def listeners(self) -> int:
        """How many want to hear of changes."""
        return len(self._listeners)

    def changed(self, digest: bytes) -> None:
        """A block came or went; the table says which."""
        self.sequence += 1
        self._log.append(digest)
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` at every change, until what is returned is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def report(self, since: int | None) -> Report:
        """What somebody has to be told who knows all up to change `since`, or nothing at all."""
        if since is None or not self.sequence - len(self._log) <= since <= self.sequence:
            return Report(0, self.sequence, True, list(self._table), [])
        missed = self.sequence - since
        touched = dict.fromkeys(self._last(missed))
        held = [digest for digest in touched if digest in self._table]
        return Report(
            since, self.sequence, False, held, [digest for digest in touched if digest not in self._table]
        )

    def _last(self, count: int) -> Iterable[bytes]:
        """The last changes, newest first; a deque is quick to reach from its end."""
        backwards = reversed(self._log)
        return (next(backwards) for _ in range(count))


def parts(report: Report, most: int = PART) -> Iterator[PrefixReport]:
    """The report as messages of at most `most` blocks each; at least one."""
    changes = [(digest, True) for digest in report.held] + [(digest, False) for digest in report.dropped]
    for part, at in enumerate(range(0, max(len(changes), 1), most)):
        some = changes[at : at + most]
        yield PrefixReport(
            since=report.since,
            sequence=report.sequence,
            full=report.full and not at,
            more=at + most < len(changes),
            part=part,
            held=b"".join(digest[:SHORT_BYTES] for digest, is_held in some if is_held),
            dropped=b"".join(digest[:SHORT_BYTES] for digest, is_held in some if not is_held),
        )
