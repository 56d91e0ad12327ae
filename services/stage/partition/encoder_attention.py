"""Attention over samples that lie one after the other without padding, for models that keep no keys and values.

Registered with the model library's `AttentionInterface` under a name that has no mask function, so that models build no
mask. Distances are limited by the window that a model's local layers pass down.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "stagemesh_samples"

_running = threading.local()


class Samples:
    """Where the samples of a pass begin, and the masks of local layers, made once for all layers."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self._masks: dict[tuple[int, int, bool], torch.Tensor] = {}

    def window(self, length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
        """Pairs of positions less than `window` apart, bool `[length, length]`."""
        key = (length, window, causal)
        if key not in self._masks:
            at = torch.arange(length, device=device)
            distance = at[:, None] - at[None, :]
            near = distance.abs() < window
            self._masks[key] = near & (distance >= 0) if causal else near
        return self._masks[key]


@contextmanager
def running(samples: Samples) -> Iterator[None]:
    """Say which samples the models called by this thread compute on."""
    _running.samples = samples
    try:
        yield
    finally:
        _running.samples = None


def sample_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attend sample by sample.

    Args:
        module: the attention layer; says whether it is causal where the call does not.
        query: `[1, heads, tokens, head_dim]`; key and value `[1, kv_heads, tokens, head_dim]`.
        key: see query.
        value: see query.
        attention_mask: always None here.
        scaling: factor on the scores; by default that of the head's width.
        sliding_window: positions that far apart or farther do not see each other.
        is_causal: a position sees only those before it.
        kwargs: what other implementations need.

    Returns:
        `[1, tokens, heads, head_dim]`, and no weights.
    """
    samples: Samples = _running.samples
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    grouped = query.shape[1] != key.shape[1]
    out = torch.empty_like(query)
    start = 0
    for length in samples.lengths:
        rows = slice(start, start + length)
        start += length
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = samples.window(length, sliding_window, causal, query.device)
        out[:, :, rows] = scaled_dot_product_attention(
            query[:, :, rows],
            key[:, :, rows],
            value[:, :, rows],
            attn_mask=mask,
            is_causal=causal and mask is None and length > 1,
            scale=scaling,
            enable_gqa=grouped,
        )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, sample_attention)
