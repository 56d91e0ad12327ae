"""How long a prompt takes at a replica, as far as its reports tell. Pure."""

from collections.abc import Mapping, Sequence

from stagemesh.prefix import BLOCK

from .candidate import Candidate
from .p2c_ewma import slowness_of

MOST_NEW = 256
"""New tokens that are reckoned with at most: few answers are as long as they may be."""
TOKENS_PER_STEP = 64
"""Tokens of a prompt that take about as long as a step of running sessions, where nothing was measured."""


def expected_ms(
    candidates: Sequence[Candidate],
    held: Mapping[str, int],
    prompt_tokens: int,
    new_tokens: int,
    now: float,
) -> list[float]:
    """Milliseconds until each would be done with a session: what waits there, its prompt, and its new tokens.

    Prompts that wait, and the part of this one that is not held there, at the measured time of a prompt's token; steps
    that wait at the measured time of a pass; what has to be forgotten for it as if it had to be computed again, so that
    room that is left somewhere is used before beginnings are given up elsewhere; the new tokens at that of a pass of decode steps, longer by the
    sessions that came since it was told.

    Who has told nothing yet counts as fast as the fastest, but for how much slower it is beyond doubt; who told long ago
    drifts there. A time that was measured in a bad moment would else keep everybody away from where it was measured,
    and so would never be measured again.

    Args:
        candidates: replicas of one stage.
        held: blocks of the prompt that need not be computed there.
        prompt_tokens: its length.
        new_tokens: the answer's length at most.
        now: seconds.
    """
    token_ms = _least([each.token_ms for each in candidates])
    decode_ms = _least([each.decode_ms for each in candidates])
    if not decode_ms:
        decode_ms = token_ms * TOKENS_PER_STEP or 1.0
    if not token_ms:
        token_ms = decode_ms / TOKENS_PER_STEP
    new_tokens = min(new_tokens, MOST_NEW)
    times = []
    for each, slowness in zip(candidates, slowness_of(candidates, now), strict=True):
        prompts, queue_ms = each.waiting(now)
        missing = prompt_tokens - held.get(each.replica_id, 0) * BLOCK
        crowd = max(1.0, (each.load(now) + 1) / (each.told_sessions + 1))
        times.append(
            queue_ms
            + (prompts + max(missing, 1) + max(missing - each.kv_free, 0))
            * _now(each.token_ms, token_ms * slowness, each.told_trust(now))
            + new_tokens * _now(each.decode_ms, decode_ms * slowness, each.told_trust(now)) * crowd
        )
    return times


def _least(values: Sequence[float]) -> float:
    """The smallest that is known; 0 when none is."""
    return min((value for value in values if value > 0), default=0.0)


def _now(told: float, else_: float, trust: float) -> float:
    """A time as it is now: as it was told, less and less so as that gets old; what it is else, where that is more."""
    if not told:
        return else_
    rest = min(told, else_)
    return rest + (told - rest) * trust
