"""What penalties know of a session: which tokens its prompt has, and how often each was generated. Pure.

Nothing here remembers what this process sampled. The session's first step says what was there before it, and every
decode step brings its own token, so a stage that takes a session over and sees its steps again knows the same.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from stagemesh.v1.stage_pb2 import Sampling, StepOpen


def needs_history(sampling: Sampling) -> bool:
    """Whether the choice depends on more of the sequence than the logits do."""
    return _repeats(sampling) or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0


def tell_history(opening: StepOpen, token_ids: Sequence[int], prompt_tokens: int) -> None:
    """Put what the last stage has to know into a session's first step.

    Args:
        opening: with its sampling set.
        token_ids: the prompt, then what was generated before a recovery.
        prompt_tokens: how many of them are the prompt.
    """
    if not needs_history(opening.sampling):
        return
    if _repeats(opening.sampling):
        opening.prompt_token_ids.extend(sorted(set(token_ids[:prompt_tokens])))
    opening.generated_token_ids.extend(token_ids[prompt_tokens:])


class History:
    """Counts of one session's tokens."""

    def __init__(self, opening: StepOpen) -> None:
        self.generated: Counter[int] = Counter(opening.generated_token_ids)
        self._prompt = frozenset(opening.prompt_token_ids)

    def __repr__(self) -> str:
        return f"<History prompt={len(self._prompt)} generated={self.generated.total()}>"

    @property
    def seen(self) -> list[int]:
        """Every token of prompt and output, once."""
        return list(self._prompt.union(self.generated))

    def add(self, token_ids: Iterable[int]) -> None:
        """The next tokens of the sequence."""
        self.generated.update(token_ids)


def _repeats(sampling: Sampling) -> bool:
    return sampling.repetition_penalty not in (0.0, 1.0)
