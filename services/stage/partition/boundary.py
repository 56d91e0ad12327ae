"""Where a partition begins and ends inside of its model's own forward.

What a model does before its layers (masks, rotary positions) every partition needs, and what it does with hidden
states there only the first one. So the forward of a later partition runs on a stand-in for the embeddings, and its
first layer is handed what came from the partition before, in whatever form the family's layers take it. The forward
of an earlier partition ends with its last layer.
"""

import inspect
from typing import Any

import torch
from torch import nn

from .families import Family


class _Left(Exception):
    """The last layer of the partition is done."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class Boundary:
    """Runs a pruned base model from boundary to boundary.

    Attributes:
        looks_at_ids: layers of this family are handed the token ids as well.

    Args:
        base: pruned and compacted.
        layers: what is left of its layers; None when its forward is not run.
        family: its adapter.
        first: the partition has the embeddings.
        last: the partition has the final norm.
    """

    def __init__(
        self, base: Any, layers: nn.ModuleList | None, family: Family, first: bool, last: bool
    ) -> None:
        self._base = base
        self._family = family
        self._first = first
        self._hidden: torch.Tensor | None = None
        self._ids: torch.Tensor | None = None
        self.looks_at_ids = False
        if layers is None:
            return
        self.looks_at_ids = "input_ids" in inspect.signature(layers[0].forward).parameters
        if not first:
            layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
            for layer in layers if self.looks_at_ids else ():
                layer.register_forward_pre_hook(self._tell_ids, with_kwargs=True)
        if not last:
            layers[-1].register_forward_hook(_leave)

    def run(
        self, ids: torch.Tensor | None, hidden: torch.Tensor | None, inputs: dict[str, object]
    ) -> torch.Tensor:
        """One session's rows through the layers.

        Args:
            ids: `[tokens]`; needed on the first partition, and where `looks_at_ids`.
            hidden: `[tokens, *row_shape]` on the others.
            inputs: what else the model's forward is called with.

        Returns:
            `[tokens, *row_shape]`, or `[tokens, hidden]` after the final norm on the last partition.
        """
        if self._first:
            assert ids is not None
            inputs["input_ids"] = ids[None]
        else:
            assert hidden is not None
            width = self._family.text.hidden_size
            # Some models scale their embeddings in place.
            inputs["inputs_embeds"] = hidden.flatten(1)[None, :, :width].clone()
            self._hidden, self._ids = self._family.from_rows(hidden), ids
        try:
            done: torch.Tensor = self._base(**inputs).last_hidden_state
        except _Left as left:
            return self._family.to_rows(left.hidden)
        finally:
            self._hidden = self._ids = None
        return done[0]

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._hidden}

    def _tell_ids(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "input_ids": None if self._ids is None else self._ids[None]}


def _leave(_: nn.Module, __: Any, output: Any) -> None:
    raise _Left(output[0] if isinstance(output, tuple) else output)
