"""Between which layers a model may be cut, from its configuration alone. Pure.

A layer that reuses what an earlier one computed (keys and values, or which positions to look at) has to be on the
same stage as that one; everywhere else a cut is fine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["legal_cuts", "nearest_cuts"]

# Every so many layers one attends to everything, where the configuration does not list the layers' types.
_FULL_EVERY = {"gemma3n": 5, "gemma3n_text": 5}
_FULL_EVERY_ELSE = 6


def legal_cuts(config: Mapping[str, Any], layers: int) -> list[int]:
    """Layer boundaries (the number of layers before the cut) at which a model may be cut, in order.

    Args:
        config: what config.json holds; nothing in it is relied on to be well-formed.
        layers: of the model.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    shared = _shared_keys(text, layers)
    indexed = _shared_indices(text, layers)
    return [cut for cut in range(1, layers) if cut <= shared and cut not in indexed]


def nearest_cuts(allowed: Sequence[int], layers: int, stages: int) -> list[int]:
    """Layer boundaries of a split into equally many layers, as nearly as the allowed cuts let it; 0 and `layers` included.

    Raises:
        ValueError: fewer than `stages - 1` cuts are allowed.
    """
    if not 1 <= stages <= len(allowed) + 1:
        raise ValueError(f"{stages} stages with {len(allowed)} cuts")
    found, at = [0], 0
    for index in range(1, stages):
        # As many as are still to come have to be left over.
        choices = range(at, len(allowed) - (stages - 1 - index))
        best = min(choices, key=lambda choice: abs(allowed[choice] * stages - index * layers))
        found.append(allowed[best])
        at = best + 1
    return [*found, layers]


def _shared_keys(config: Mapping[str, Any], layers: int) -> int:
    """The last cut before the layers that share keys and values, and before those that they have them from.

    The last `num_kv_shared_layers` layers take them from the last layer of their own type before.
    """
    count = config.get("num_kv_shared_layers")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < layers:
        return layers
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        every = _FULL_EVERY.get(str(config.get("model_type")), _FULL_EVERY_ELSE)
        kinds = ["full" if (layer + 1) % every == 0 else "sliding" for layer in range(layers)]
    last = {str(kind): layer for layer, kind in enumerate(kinds[: layers - count])}
    return min(
        (last[kind] for kind in map(str, kinds[layers - count :]) if kind in last), default=layers - count
    )


def _shared_indices(config: Mapping[str, Any], layers: int) -> set[int]:
    """Layers that attend to the positions which the layer before them chose."""
    kinds, every = (
        config.get("indexer_types") or config.get("index_topk_pattern"),
        config.get("index_topk_freq"),
    )
    if isinstance(kinds, list | str):
        return {layer for layer, kind in enumerate(kinds) if kind in ("shared", "S")}
    if isinstance(every, int) and every > 1:
        offset = config.get("index_skip_topk_offset", 2)
        offset = offset if isinstance(offset, int) else 2
        return {layer for layer in range(layers) if max(layer - offset + 1, 0) % every}
    if config.get("model_type") == "hy_v4":
        return {layer for layer in range(1, layers) if (layer - 1) % 4}
    return set()
