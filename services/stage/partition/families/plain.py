"""A family whose layers pass one hidden state per token to one another, and nothing else."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..cache import SessionCache


class Family:
    """How one partition of a model meets its neighbours. Families that differ override what differs.

    Attributes:
        before: modules of the base model beside the plan's that only the first partition needs.
        after: those that only the last one needs.
        caches: entries of the model's cache that one layer has.
        one_by_one: once a session has a state, it goes on by one token at a time.

    Args:
        config: of the whole model.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    caches = 1
    one_by_one = False

    def __init__(self, config: PreTrainedConfig) -> None:
        # Of the whole model: caches are made from it.
        self.config = config
        self.text = config.get_text_config(decoder=True)

    def row_shape(self) -> tuple[int, ...]:
        """The shape of one token's hidden state."""
        return (self.text.hidden_size,)

    def to_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """What a layer gives for one session -> `[tokens, *row_shape]`."""
        return hidden[0]

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """`[tokens, *row_shape]` -> what a layer takes."""
        return rows[None]

    def cache(self, first: int, end: int) -> SessionCache:
        """An empty cache of layers `first` to `end` (exclusive)."""
        return SessionCache(self.config, first * self.caches, end * self.caches)

    def sides(self, first: int) -> dict[str, tuple[int, ...]]:
        """What a partition that begins at layer `first` is given beside hidden states: name -> shape of a row."""
        return {}

    def attach(self, base: PreTrainedModel, first: int, end: int) -> None:
        """Change what the partition's model does with its sides; once, when it is loaded."""

    def take(self, sides: dict[str, torch.Tensor]) -> None:
        """These are the sides `[tokens, ...]` of the session that is computed next; on all but the first partition."""

    def give(self) -> dict[str, torch.Tensor]:
        """Sides `[tokens, ...]` of the session just computed, for the next partition."""
        return {}
