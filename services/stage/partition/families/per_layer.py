"""Gemma 3n and Gemma 4: every layer takes an input of its own beside the hidden state, made from the token.

All of them are made on the first partition, whose table of embeddings is larger than the rest of the model; what
later layers need travels with the hidden states.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from .plain import Family

_SIDE = "per_layer_inputs"


class PerLayerInputs(Family):
    """The side `per_layer_inputs` `[tokens, layers to come, width]`."""

    before: tuple[str, ...] = (
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
    )

    _kept = 0
    # Of the session that is being computed, `[tokens, layers from the partition's first on, width]`.
    _current: torch.Tensor | None = None

    @property
    def _width(self) -> int:
        return getattr(self.text, "hidden_size_per_layer_input", None) or 0

    def sides(self, first: int) -> dict[str, tuple[int, ...]]:
        """The inputs of layer `first` and all after it."""
        return {_SIDE: (self.text.num_hidden_layers - first, self._width)} if self._width and first else {}

    def attach(self, base: PreTrainedModel, first: int, end: int) -> None:
        """Keep what the first partition makes; elsewhere use what came."""
        if not self._width:
            return
        self._kept = end - first
        model: Any = base
        made = model.project_per_layer_inputs

        def keep(*args: Any, **kwargs: Any) -> torch.Tensor:
            inputs: torch.Tensor = made(*args, **kwargs)
            self._current = inputs[0]
            return inputs

        def given(*_: Any, **__: Any) -> torch.Tensor:
            assert self._current is not None
            return self._current[None]

        model.project_per_layer_inputs = given if first else keep
        if first:
            model.get_per_layer_inputs = lambda *_, **__: None

    def take(self, sides: dict[str, torch.Tensor]) -> None:
        """See `Family.take`."""
        self._current = sides.get(_SIDE)

    def give(self) -> dict[str, torch.Tensor]:
        """Without the layers of this partition."""
        if self._current is None:
            return {}
        left = self._current[:, self._kept :].contiguous()
        self._current = None
        return {_SIDE: left} if left.shape[1] else {}


class AlternatingStreams(PerLayerInputs):
    """Gemma 3n besides has several streams per token, of which each layer works on one in turn (AltUp)."""

    before = (*PerLayerInputs.before, "altup_projections")
    after = ("altup_unembed_projections",)

    def row_shape(self) -> tuple[int, ...]:
        """`streams, hidden`."""
        return self.text.altup_num_inputs, self.text.hidden_size

    def to_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[streams, 1, tokens, hidden]` -> `[tokens, streams, hidden]`."""
        return hidden[:, 0].transpose(0, 1)

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        return rows.transpose(0, 1)[:, None]
