"""The model library's own cache of one session, cut to one partition's layers."""

from typing import Any

from transformers import Cache, DynamicCache, PreTrainedConfig


class PartCache(Cache):
    """What a cache of some of a model's layers answers where its layers alone cannot say.

    A partition may have no layer that knows how long the sequence is (recurrent ones do not), or none with a
    recurrent state, and the model asks all the same: the answer is kept here. Mixed into a cache class before it.

    Attributes:
        seen: positions that have been computed.
    """

    seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions so far."""
        try:
            return int(super().get_seq_length(layer_idx)) or self.seen
        except ValueError:
            return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a query of `query_length` rows sees, and how many were dropped before them."""
        try:
            # A layer without keys, among those that have seen some positions, never has any.
            if super().get_seq_length(layer_idx) or not self.seen:
                return super().get_mask_sizes(query_length, layer_idx)
        except ValueError:
            pass
        return self.seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether a recurrent layer has been through some positions."""
        try:
            return bool(super().has_previous_state(layer_idx, state_idx))
        except ValueError:
            if layer_idx is not None:
                raise
            return self.seen > 0


class SessionCache(PartCache, DynamicCache):
    """State of some layers, of whatever kind each is.

    Args:
        config: of the whole model.
        first: first entry of the whole model's cache; one entry per layer in most families.
        end: one past the last.
    """

    def __init__(self, config: PreTrainedConfig, first: int, end: int) -> None:
        super().__init__(config=config)
        whole: list[Any] = getattr(self, "layers")  # noqa: B009 (untyped there)
        self.layers = whole[first:end]
