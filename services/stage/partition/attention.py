"""Ragged attention for the model library's own layers, through its public `AttentionInterface`.

Registered under a name that has no mask function, so the models build no mask; which rows belong to which session
comes from the batch that the compute thread is running.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface

from .ragged import Ragged

NAME = "stagemesh_ragged"

_running = threading.local()


@contextmanager
def running(batch: Ragged) -> Iterator[None]:
    """Say which batch the models called by this thread compute on."""
    _running.batch = batch
    try:
        yield
    finally:
        _running.batch = None


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Store keys and values, and attend segment by segment.

    Args:
        module: the attention layer; its `layer_idx` counts within the partition.
        query: `[1, heads, tokens, head_dim]`; key and value `[1, kv_heads, tokens, head_dim]`.
        key: see query.
        value: see query.
        attention_mask: always None here.
        scaling: factor on the scores; by default that of the head's width.
        kwargs: what other implementations need.

    Returns:
        `[1, tokens, heads, head_dim]`, and no weights.
    """
    batch: Ragged = _running.batch
    heads, head_dim = query.shape[1], query.shape[3]
    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    layer: int = getattr(module, "layer_idx", 0)
    arena = batch.arena(layer)
    if arena is not None and batch.slots is not None:
        arena[0].index_copy_(0, batch.slots, keys)
        arena[1].index_copy_(0, batch.slots, values)
    flat = query[0].transpose(0, 1).reshape(-1, heads * head_dim)
    scale = head_dim**-0.5 if scaling is None else scaling
    return batch.attend(layer, flat, keys, values, heads, scale).unflatten(1, (heads, head_dim))[None], None


AttentionInterface.register(NAME, ragged_attention)
