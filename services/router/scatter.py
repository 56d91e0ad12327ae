"""Cuts a padded batch into ragged micro-batches, and puts the answers back in order. Pure (numpy only)."""

from collections.abc import Sequence

import numpy as np

from stagemesh.errors import InternalError

MAX_TOKENS = 4096
MAX_ROWS = 64
PARTS_PER_STAGE = 4
"""Micro-batches that keep a pipeline busy: with n of them, P stages compute for n / (n + P - 1) of the time."""
WORTH_TOKENS = 64
"""A micro-batch of its own must bring at least that many tokens, or it costs more than the overlap gives back."""


def plan(
    lengths: Sequence[int], stages: int = 1, *, max_tokens: int = MAX_TOKENS, max_rows: int = MAX_ROWS
) -> list[range]:
    """Consecutive rows that travel together, within both bounds; a row longer than `max_tokens` goes alone.

    Over several stages a batch is cut finer, so that they work on different parts of it at the same time.
    """
    if stages > 1:
        share = -(-sum(lengths) // (PARTS_PER_STAGE * stages))
        max_tokens = min(max_tokens, max(share, WORTH_TOKENS))
    parts: list[range] = []
    start, tokens = 0, 0
    for row, length in enumerate(lengths):
        if row > start and (tokens + length > max_tokens or row - start == max_rows):
            parts.append(range(start, row))
            start, tokens = row, 0
        tokens += length
    if start < len(lengths):
        parts.append(range(start, len(lengths)))
    return parts


def pack(padded: np.ndarray, rows: range, lengths: Sequence[int]) -> np.ndarray:
    """[B, T, ...] -> [sum(lengths of rows), ...]: the rows' tokens one after the other, padding dropped."""
    return np.concatenate([padded[row, : lengths[row]] for row in rows])


def gather(
    parts: Sequence[np.ndarray], groups: Sequence[Sequence[int]], width: int, *, per_token: bool
) -> np.ndarray:
    """Join the micro-batches' answers: [B, width, ...] per token, [B, ...] per sample.

    `groups` holds the lengths of each micro-batch's rows. Raises `InternalError` when an answer has not one row
    for each token or sample.
    """
    for part, lengths in zip(parts, groups, strict=True):
        expected = sum(lengths) if per_token else len(lengths)
        if part.ndim < 1 or part.shape[0] != expected or part.shape[1:] != parts[0].shape[1:]:
            raise InternalError(
                f"a stage answered with shape {list(part.shape)}, {expected} rows were expected"
            )
    if not per_token:
        return parts[0] if len(parts) == 1 else np.concatenate(list(parts))
    every = [length for group in groups for length in group]
    shape = (len(every), width, *parts[0].shape[1:])
    if min(every) == width:  # nothing was padded
        return (parts[0] if len(parts) == 1 else np.concatenate(list(parts))).reshape(shape)
    padded = np.zeros(shape, dtype=parts[0].dtype)
    row = 0
    for part, group in zip(parts, groups, strict=True):
        start = 0
        for length in group:
            padded[row, :length] = part[start : start + length]
            start += length
            row += 1
    return padded
