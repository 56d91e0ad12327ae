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
        out[:, :, rows] = _attend(query[:, :, rows], keys[None], values[None], segment, causal, scaling)
    return out.transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segment: Segment,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """One segment: `[1, heads, rows, head_dim]` against `[1, kv_heads, positions, head_dim]`."""
    heads, kv_heads = query.shape[1], keys.shape[1]
    if segment.rows == 1:
        # Nothing to mask: the query heads that share a key head are as good as rows of one head, and torch
        # need not repeat the keys for each (several times faster on a CPU).
        grouped = query.reshape(1, kv_heads, heads // kv_heads, query.shape[3])
        return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(query.shape)
    mask = None
    if causal and segment.position:
        mask = torch.ones(segment.rows, keys.shape[2], dtype=torch.bool, device=keys.device)
        mask = mask.tril(diagonal=segment.position)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=kv_heads != heads,
    )


AttentionInterface.register(NAME, ragged_attention)
