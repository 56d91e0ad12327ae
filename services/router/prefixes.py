"""Which replicas hold which blocks of prompts, as they tell it themselves. Pure.

One table from the first 8 bytes of a block's digest to the replicas that hold it, each a bit of a number: however many
replicas share the beginning of a prompt, following it costs one look for each of its blocks. What is known may be old, or
wrong where two prompts share 8 bytes of digest; that costs time, since stages compare the whole digest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from stagemesh.prefix import BLOCK, SHORT_BYTES
from stagemesh.v1.stage_pb2 import PrefixReport

MOST_BLOCKS = 2**19
"""Different blocks remembered in all, about 75 MB; those first heard of the longest ago are forgotten first."""
_SWEEP = 64
"""Bits of replicas that left, before they are cleared from the table."""


@dataclass(slots=True)
class _Place:
    """Where a replica's reports are: the last change of the last whole one, and what has come of the next."""

    known: int = 0
    coming: int = 0
    part: int = 0

    def follows(self, report: PrefixReport) -> bool:
        """Whether nothing is missing before this one, which then counts as having come."""
        if report.part != self.part:
            return False
        if report.part == 0 and not report.full and report.since != self.known:
            return False
        if report.part and report.sequence != self.coming:
            return False
        if report.more:
            self.coming, self.part = report.sequence, self.part + 1
        else:
            self.known, self.part = report.sequence, 0
        return True


class Prefixes:
    """What every replica that reports said of its blocks.

    Attributes:
        forgotten: blocks that were dropped for want of room.
    """

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self.forgotten = 0
        self._most = most
        self._holders: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._places: dict[str, _Place] = {}
        self._used = 0
        # Bits of the replicas that report, and of those (or of the same, as they were) that are to be cleared.
        self._live = 0
        self._retired = 0

    def __repr__(self) -> str:
        return f"Prefixes(replicas={len(self._bits)}, blocks={len(self._holders)}/{self._most})"

    def __len__(self) -> int:
        """Different blocks remembered."""
        return len(self._holders)

    def take(self, replica_id: str, report: PrefixReport) -> bool:
        """Learn from a report; False when one before it was missed, so that everything has to be asked for again."""
        if report.full:
            self.forget(replica_id)
            self._bits[replica_id] = self._new_bit()
            self._places[replica_id] = _Place()
        place = self._places.get(replica_id)
        if place is None or not place.follows(report):
            return False
        bit = self._bits[replica_id]
        holders = self._holders
        for digest in _split(report.dropped):
            rest = holders.get(digest, 0) & ~bit
            if rest & self._live:
                holders[digest] = rest
            else:
                holders.pop(digest, None)
        for digest in _split(report.held):
            holders[digest] = holders.get(digest, 0) | bit
        if len(holders) > self._most:
            self._make_room()
        return True

    def begin(self, replica_id: str) -> None:
        """A new stream from it: whatever was known stays, but numbers begin anew, so only everything may come first."""
        self._places.pop(replica_id, None)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, or says everything again."""
        self._places.pop(replica_id, None)
        bit = self._bits.pop(replica_id, None)
        if bit is not None:
            self._live &= ~bit
            self._retired |= bit
            if self._retired.bit_count() >= _SWEEP:
                self._sweep()

    def reports(self, replica_id: str) -> bool:
        """Whether something is known of it."""
        return replica_id in self._bits

    def blocks_of(self, replica_id: str) -> set[int]:
        """The blocks it is believed to hold; slow, for whoever looks into it."""
        bit = self._bits.get(replica_id, 0)
        return {digest for digest, holders in self._holders.items() if holders & bit}

    def held(self, replica_ids: Iterable[str], blocks: Sequence[bytes]) -> dict[str, int]:
        """How many blocks from the start of a prompt each of these replicas holds; those that hold none are left out."""
        there = {bit: name for name in replica_ids if (bit := self._bits.get(name))}
        asked = 0
        for bit in there:
            asked |= bit
        found: dict[str, int] = {}
        holding, count = asked, 0
        for digest in blocks:
            still = holding & self._holders.get(int.from_bytes(digest[:SHORT_BYTES]), 0)
            if still != holding:
                if count:
                    _note(found, there, holding & ~still, count)
                holding = still
                if not holding:
                    break
            count += 1
        if holding and count:
            _note(found, there, holding, count)
        return found

    def _new_bit(self) -> int:
        if self._retired and not self._live and not self._holders:
            self._used = self._retired = 0
        bit = 1 << self._used
        self._used += 1
        self._live |= bit
        return bit

    def _sweep(self) -> None:
        """Clear the bits of those that left, and number the others anew, so that numbers stay short."""
        names = list(self._bits)
        moved = {self._bits[name]: 1 << place for place, name in enumerate(names)}
        # Most blocks have one of few sets of holders.
        known: dict[int, int] = {}
        swept: dict[int, int] = {}
        for digest, holders in self._holders.items():
            new = known.get(holders)
            if new is None:
                new = sum(after for before, after in moved.items() if holders & before)
                known[holders] = new
            if new:
                swept[digest] = new
        self._holders = swept
        self._bits = {name: 1 << place for place, name in enumerate(names)}
        self._used, self._retired = len(names), 0
        self._live = (1 << self._used) - 1

    def _make_room(self) -> None:
        """Forget who left, and then an eighth of the blocks, those heard of first."""
        self._sweep()
        if len(self._holders) > self._most:
            over = len(self._holders) - self._most + self._most // 8
            self._holders = dict(islice(self._holders.items(), over, None))
            self.forgotten += over


class Reuse:
    """How much of one prompt each stage's replicas could spare, given what was chosen before them. In blocks.

    A session begins where all stages of its route have what lies before: the stage that has least decides.

    Args:
        prefixes: what is known.
        stages: ids of the replicas to choose from, stage by stage.
        blocks: digests of the prompt.
        tokens: its length; its last token is always computed.
    """

    def __init__(
        self, prefixes: Prefixes, stages: Sequence[Sequence[str]], blocks: Sequence[bytes], tokens: int
    ) -> None:
        usable = blocks[: max(0, tokens - 1) // BLOCK]
        self._held = [prefixes.held(stage, usable) for stage in stages]
        self.most = min((max(held.values(), default=0) for held in self._held), default=0)
        """What the route chosen so far, and the best of the stages that are left, have in common."""

    def at(self, stage: int) -> Mapping[str, int]:
        """What each replica of the stage would spare, those without anything left out."""
        most = self.most
        return {name: min(count, most) for name, count in self._held[stage].items()} if most else {}

    def chose(self, stage: int, replica_id: str) -> None:
        """That one is on the route."""
        self.most = min(self.most, self._held[stage].get(replica_id, 0))


def _split(joined: bytes) -> Iterable[int]:
    whole = len(joined) // SHORT_BYTES * SHORT_BYTES
    return (int.from_bytes(joined[at : at + SHORT_BYTES]) for at in range(0, whole, SHORT_BYTES))


def _note(found: dict[str, int], there: Mapping[int, str], bits: int, count: int) -> None:
    while bits:
        bit = bits & -bits
        found[there[bit]] = count
        bits ^= bit
