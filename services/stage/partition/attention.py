"""Attention over a ragged batch: sessions of different lengths in one pass, without padding.

Registered with transformers' public `AttentionInterface` under a name that has no mask function, so the models
build no mask; which rows belong to which session comes from the batch that the compute thread is running.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from .kv import SessionKV

NAME = "stagemesh_ragged"


@dataclass(slots=True)
class Segment:
    """Rows of the batch that are one session's, `position` onwards; without `kv` the pass is stateless."""

    start: int
    rows: int
    position: int
    kv: SessionKV | None = None


_running = threading.local()


@contextmanager
def running(segments: list[Segment], causal: bool) -> Iterator[None]:
    """Say which batch the models called by this thread compute on."""
    _running.batch = (segments, causal)
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
    """Attend segment by segment.

    Args:
        module: the attention layer; its `layer_idx` counts within the partition.
        query: `[1, heads, tokens, head_dim]`; key and value `[1, kv_heads, tokens, head_dim]`.
        key: see query.
        value: see query.
        attention_mask: always None here.
        scaling: factor on the scores.
        kwargs: what other implementations need.

    Returns:
        `[1, tokens, heads, head_dim]`, and no weights.
    """
    segments, causal = _running.batch
    out = torch.empty_like(query)
    for segment in segments:
        rows = slice(segment.start, segment.start + segment.rows)
        keys, values = key[0, :, rows], value[0, :, rows]
        if segment.kv is not None:
            keys, values = segment.kv.extend(module.layer_idx, segment.position, keys, values)
        mask = None
        if causal and segment.rows > 1 and segment.position:
            mask = torch.ones(segment.rows, keys.shape[1], dtype=torch.bool, device=keys.device)
            mask = mask.tril(diagonal=segment.position)
        out[:, :, rows] = scaled_dot_product_attention(
            query[:, :, rows],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=causal and segment.rows > 1 and mask is None,
            scale=scaling,
            enable_gqa=keys.shape[0] != query.shape[1],
        )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, ragged_attention)
