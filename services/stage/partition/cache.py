"""The model library's own cache of one session, cut to one partition's layers."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from .kv import KVLayout

# Rows of the sequences that a cache's growth is measured on.
_TRIES = (1, 2, 40)
# What a session has beside its positions is counted as no more than that many positions.
_POSITIONS_BESIDES = 1024


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

    def cut(self, position: int) -> bool:
        """Forget what lies at `position` and after it; False, and nothing is changed, where that cannot be done."""
        return False


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

    def cut(self, position: int) -> bool:
        """See `PartCache`; possible where every layer's state is a plain list of positions."""
        layers: list[Any] = self.layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            return False
        for layer in layers:
            if layer.is_initialized and layer.keys.numel():
                layer.keys = layer.keys[..., :position, :]
                layer.values = layer.values[..., :position, :]
        self.seen = position
        return True


def state_bytes(cache: PartCache) -> int:
    """What the tensors of a session's cache take, views with all of what they are views of."""
    found = {}
    for tensor in _tensors([vars(cache), *(vars(layer) for layer in cache.layers)]):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def own_layout(after: Callable[[int], PartCache], layout: KVLayout) -> KVLayout:
    """How much memory to reserve for a session whose state is of a kind that only the model library knows.

    A state grows fastest at its beginning, or not at all: windows fill, what lies far back is dropped or compressed.
    So its growth from one row to two bounds that of every other.

    Args:
        after: a fresh session's cache after so many rows.
        layout: of the partition.
    """
    sizes = {rows: state_bytes(after(rows)) for rows in _TRIES}
    one, two, many = _TRIES
    token = max(sizes[two] - sizes[one], -(-(sizes[many] - sizes[two]) // (many - two)), 0)
    session = max(size - rows * token for rows, size in sizes.items())
    return replace(
        layout,
        own_token_bytes=max(token, -(-session // _POSITIONS_BESIDES), 1),
        session_bytes=max(session, 0),
    )
