"""What belongs together goes to one replica, while that is not overloaded."""

import hashlib
import math
import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready
from .p2c_ewma import P2cEwma

BOUND = 1.25
"""A replica takes at most so many times the average number of sessions before the next one is asked."""


class SessionAffinity:
    """Rendezvous hashing of the session key, with bounded loads (Mirrokni et al., 2018).

    Each key has its own order of preference among the replicas, so that one that comes or goes moves only the
    keys that it gets or had. Sessions without a key are balanced like `p2c_ewma`.
    """

    def __init__(self) -> None:
        self._without_key = P2cEwma()

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The first replica in the key's order that is within its bound."""
        if not ask.session_key:
            return self._without_key.choose(candidates, now, rng, ask)
        ready = only_ready(candidates)
        loads = {each.replica_id: each.load(now) for each in ready}
        bound = math.ceil(BOUND * (sum(loads.values()) + 1) / len(ready))
        within = [each for each in ready if loads[each.replica_id] < bound]
        return max(within, key=lambda each: _score(ask.session_key, each.replica_id))


def _score(key: str, replica_id: str) -> bytes:
    name = replica_id.encode(errors="surrogatepass")
    text = len(name).to_bytes(4) + name + key.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()
