"""Modules that stand at a cut, so that a model's own forward runs on a part of it."""

from typing import Any

import torch
from torch import nn

POSITIONS = "embed_positions"


class Given:
    """The hidden states that a partition goes on with; None while it begins with the model's inputs."""

    def __init__(self) -> None:
        self.hidden: torch.Tensor | None = None


class Reached(Exception):
    """A partition's last layer has run: what comes after it is another's, or done per output."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("the end of the partition")
        self.hidden = hidden


class _Beside(nn.Module):
    """A module whose attributes can be read although it is no child: it has no memory, or lies elsewhere."""

    def __init__(self, beside: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_beside", beside)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_beside"), name)


class Door(_Beside):
    """In the place of what comes before the layers: runs it, or steps aside where hidden states are given.

    Args:
        inner: what was here.
        name: what it was called.
        here: whether this partition has it.
        given: shared by all that stands at the cut.
        pair: it gives two values.
    """

    def __init__(self, inner: nn.Module, name: str, here: bool, given: Given, pair: bool) -> None:
        super().__init__(inner)
        self._pair = pair
        self._given = given
        self._name = name
        self.inner = inner if here else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `inner` gives, or something of the right shape that nobody looks at."""
        hidden = self._given.hidden
        if hidden is None:
            assert self.inner is not None, "the partition begins with hidden states"
            return self.inner(*args, **kwargs)
        if self._name.endswith(POSITIONS):  # added to what has its dimensions in another order
            return hidden.new_zeros(())
        return (hidden, hidden) if self._pair else hidden


class Enter(_Beside):
    """In the place of the layers before: answers with the hidden states given."""

    def __init__(self, like: nn.Module, given: Given, answer: int) -> None:
        super().__init__(like)
        self._given = given
        self._answer = answer

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> Any:
        """As a layer would."""
        given = self._given.hidden
        given = hidden if given is None else given
        return (given, *[None] * (self._answer - 1)) if self._answer else given


class Leave(_Beside):
    """In the place of the layers after: ends the forward."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Raises `Reached` with what the layers before gave."""
        raise Reached(hidden)
