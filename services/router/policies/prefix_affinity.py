"""A prompt goes where most of it was computed already, unless waiting there costs more than that spares."""

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from stagemesh.prefix import BLOCK

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready
from .p2c_ewma import P2cEwma, costs_of

TOKENS_PER_STEP = 64
"""Tokens of a prompt that take about as long as one step of a running session."""
MOST_BLOCKS = 65536
"""Blocks whose replica is remembered; the longest unused ones are forgotten first."""


class PrefixAffinity:
    """Remembers, by digest, which replica got each block of the prompts that it chose for.

    A digest covers every token up to its block's end, so the last known one of a prompt is its longest known prefix.
    The replica that most recently got it is preferred as long as its cost is not more than that of
    the balanced choice by the steps that the prefix spares. Prompts of nothing known are balanced like `p2c_ewma`.

    The router knows what it sent, not what was dropped there meanwhile; `learned` and `forgotten` take what a replica
    itself may say of its blocks, in the same digests.
    """

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._most = most_blocks
        self._owner: OrderedDict[bytes, str] = OrderedDict()
        self._balanced = P2cEwma()

    def __repr__(self) -> str:
        return f"PrefixAffinity(blocks={len(self._owner)}/{self._most})"

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The owner of the longest known prefix, or the balanced choice; it owns the prompt from now on."""
        ready = only_ready(candidates)
        chosen = self._balanced.choose(ready, now, rng, ask)
        owner, spared = self._find(ask.blocks, {each.replica_id: each for each in ready})
        if owner is not None and owner is not chosen:
            there, here = costs_of([owner, chosen], now)
            if there - here <= spared * BLOCK / TOKENS_PER_STEP:
                chosen = owner
        self.learned(chosen.replica_id, ask.blocks)
        return chosen

    def learned(self, replica_id: str, blocks: Iterable[bytes]) -> None:
        """The replica holds these blocks now."""
        for digest in blocks:
            self._owner[digest] = replica_id
            self._owner.move_to_end(digest)
        while len(self._owner) > self._most:
            self._owner.popitem(last=False)

    def forgotten(self, replica_id: str, blocks: Iterable[bytes]) -> None:
        """The replica holds them no more."""
        for digest in blocks:
            if self._owner.get(digest) == replica_id:
                del self._owner[digest]

    def _find(self, blocks: Sequence[bytes], ready: dict[str, Candidate]) -> tuple[Candidate | None, int]:
        """Who of `ready` has the longest known prefix, and its length in blocks."""
        for count in range(len(blocks), 0, -1):
            owner = ready.get(self._owner.get(blocks[count - 1], ""))
            if owner is not None:
                return owner, count
        return None, 0
