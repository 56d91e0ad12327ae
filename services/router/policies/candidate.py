"""What a policy knows of a replica and of who asks, and what a policy is."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from stagemesh.prefix import digests

FRESH_S = 3.0
"""What a replica said of other routers' sessions says nothing any more after this."""
FADE_S = 10.0
"""Time constant with which trust in an unconfirmed peak step time fades, so that a slow replica is tried again."""
UNSURE = 4.0
"""By what factor a step time may be off of which too little is known.

A pass of many sessions takes longer than a pass of few at the same speed, and on a shared machine a step time
swings from one second to the next.
"""
UNKNOWN_ROOM = 2**62
"""Of a replica that has told nothing yet: enough."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that might be chosen, as it was known when anything about it last changed.

    `active` counts this router's sessions on it; `others` those beyond that it spoke of at `others_at` (seconds).
    `peak_ms` is the peak-sensitive moving average of a pass, last confirmed at `peak_at`, 0 while unknown.
    `mean_ms` is the mean over a minute, right within the factor `doubt`; 0 while unknown. `canary_ms` is the pass that
    was timed before the replica became ready.

    `prompts` are tokens of this router's prompts that are not through there, whether it knows of them yet or not.

    What it told at `told_at`, 0 while unknown: its sessions, the milliseconds of steps that wait there, the tokens of
    others' prompts that do, what a token of a prompt and a pass of decode steps take, and the positions of KV that can be
    had there without forgetting the beginning of any prompt.
    """

    replica_id: str
    ready: bool = True
    active: int = 0
    others: int = 0
    others_at: float = -math.inf
    peak_ms: float = 0.0
    peak_at: float = -math.inf
    mean_ms: float = 0.0
    doubt: float = UNSURE
    canary_ms: float = 0.0
    zone: str = ""
    told_at: float = -math.inf
    told_sessions: int = 0
    steps_ms: float = 0.0
    prompts: int = 0
    others_prompts: int = 0
    token_ms: float = 0.0
    decode_ms: float = 0.0
    kv_free: int = UNKNOWN_ROOM

    def waiting(self, now: float) -> tuple[int, float]:
        """Tokens of prompts, and milliseconds of steps, that wait there; what was told long ago is over."""
        if now - self.told_at < FRESH_S:
            return self.prompts + self.others_prompts, self.steps_ms
        return self.prompts, 0.0

    def told_trust(self, now: float) -> float:
        """How far the times that it told still hold: 1 when just told, towards 0 without a word."""
        return math.exp(min(self.told_at - now, 0.0) / FRESH_S)

    def load(self, now: float) -> int:
        """Sessions there, this router's and, while that is fresh, those of others."""
        return self.active + self.others if now - self.others_at < FRESH_S else self.active

    def confidence(self, now: float) -> float:
        """How far `peak_ms` still holds: 1 when just reported, towards 0 as time passes without a word."""
        return math.exp(min(self.peak_at - now, 0.0) / FADE_S)


@dataclass(frozen=True)
class Ask:
    """Who asks, as far as a policy may use it.

    `session_key` names what belongs together (a conversation), `token_ids` is the prompt, `zone` limits the choice to
    replicas there, `new_tokens` is how long the answer may become. All may be empty. `held` has, for the stage that is
    being chosen for, the blocks of the prompt that a replica would spare; those that spare none are not in it.
    """

    session_key: str = ""
    token_ids: Sequence[int] = ()
    zone: str = ""
    new_tokens: int = 0
    held: Mapping[str, int] = field(default_factory=dict)

    def holding(self, held: Mapping[str, int]) -> "Ask":
        """The same, for a stage whose replicas would spare that much."""
        return replace(self, held=held)

    @cached_property
    def blocks(self) -> tuple[bytes, ...]:
        """A digest for each full block of the prompt, over every token up to that block's end."""
        return tuple(digests(self.token_ids))


NOTHING_ASKED = Ask()


class Policy(Protocol):
    """Chooses one replica of one stage. An instance belongs to one stage of one model and may keep bounded state."""

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """Return one of the ready candidates; raise `LookupError` when there is none."""
        ...


def only_ready(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The ready ones, in order; raise `LookupError` when there is none."""
    ready = [candidate for candidate in candidates if candidate.ready]
    if not ready:
        raise LookupError("no ready replica")
    return ready
