"""Every replica in turn."""

import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready


class RoundRobin:
    """Chooses the replica whose last turn is longest ago, so that replicas may come and go between turns.

    While the set of ready replicas stays the same, n consecutive choices among n replicas take each one once.
    """

    def __init__(self) -> None:
        self._last_turn: dict[str, int] = {}
        self._turn = 0

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The next in turn; one never seen before comes first."""
        last = self._last_turn.get
        chosen = min(only_ready(candidates), key=lambda each: last(each.replica_id, -1))
        self._turn += 1
        self._last_turn[chosen.replica_id] = self._turn
        if len(self._last_turn) > 4 * len(candidates) + 16:
            known = {each.replica_id for each in candidates}
            self._last_turn = {name: turn for name, turn in self._last_turn.items() if name in known}
        return chosen
