"""A prompt goes where most of it was computed already, unless waiting there takes longer than that spares."""

import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready
from .expected import expected_ms
from .p2c_ewma import P2cEwma


class PrefixAffinity:
    """Compares the balanced choice with every replica that holds some of the prompt, by the time that each would take.

    That is what waits there, the part of the prompt that it does not hold, and the answer's steps, at the times that the
    replicas measured (`expected.py`): a prefix of a second is worth a queue of a second. Prompts of which nobody holds
    anything are balanced like `p2c_ewma`. Keeps nothing: what replicas hold they tell all routers alike.
    """

    def __init__(self) -> None:
        self._balanced = P2cEwma()

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The one expected to be done first, of the balanced choice and those that hold a part.

        Of equals who holds more, then the balanced choice, then any.
        """
        chosen = self._balanced.choose(candidates, now, rng, ask)
        held = ask.held
        compared = [each for each in only_ready(candidates) if held.get(each.replica_id)] if held else []
        if not compared or compared == [chosen]:
            return chosen
        if chosen not in compared:
            compared.append(chosen)
        times = expected_ms(compared, held, len(ask.token_ids), ask.new_tokens, now)
        ranks = [
            (time, -held.get(each.replica_id, 0), each is not chosen)
            for time, each in zip(times, compared, strict=True)
        ]
        best = min(ranks)
        return rng.choice([each for rank, each in zip(ranks, compared, strict=True) if rank == best])
