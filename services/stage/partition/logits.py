"""From hidden states to logits, as the model itself makes them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .skeleton import Skeleton


class _Given(nn.Module):
    """In the place of the base model: answers with hidden states that were computed before.

    Args:
        base: what it stands for; heads read settings from it, and call a decoder inside of it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self._of = (base,)

    def __getattr__(self, name: str) -> Any:
        if name == "_of":
            raise AttributeError(name)
        found = getattr(self._of[0], name)
        return self if isinstance(found, nn.Module) else found

    def forward(self, *_: object, **__: object) -> "_Answer":
        return _Answer(last_hidden_state=self.hidden)


class _Answer(SimpleNamespace):
    """What a base model returns, of which everything optional is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int) -> Any:
        return self.last_hidden_state if index == 0 else None


class WholeHead:
    """Logits as the model itself makes them, with whatever it does before and after its output layer.

    Args:
        skeleton: of the last partition; its model's base is replaced.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._model = skeleton.model
        self._given = _Given(skeleton.base)
        name = next(name for name, child in self._model.named_children() if child is skeleton.base)
        setattr(self._model, name, self._given)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` -> `[rows, vocab]`."""
        self._given.hidden = hidden[None]
        try:
            logits: torch.Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits
        finally:
            self._given.hidden = None
        return logits[0]


def head_of(skeleton: Skeleton, plain: bool) -> Any:
    """The output layer alone where the family is known to have nothing around it."""
    return skeleton.model.get_output_embeddings() if plain else WholeHead(skeleton)
