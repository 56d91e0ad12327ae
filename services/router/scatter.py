"""Cuts a padded batch into ragged micro-batches, and puts the answers back in order. Pure (numpy only)."""

from collections.abc import Sequence

import numpy as np

from stagemesh.errors import InternalError

MAX_TOKENS = 4096
MAX_ROWS = 64


def plan(lengths: Sequence[int], *, max_tokens: int = MAX_TOKENS, max_rows: int = MAX_ROWS) -> list[range]:
    """Consecutive rows that travel together, within both bounds; a row longer than `max_tokens` goes alone."""
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


def pad(flat: np.ndarray, lengths: Sequence[int], width: int) -> np.ndarray:
    """[sum(lengths), ...] -> [len(lengths), width, ...], zeros after each row's tokens."""
    padded = np.zeros((len(lengths), width, *flat.shape[1:]), dtype=flat.dtype)
    start = 0
    for row, length in enumerate(lengths):
        padded[row, :length] = flat[start : start + length]
        start += length
    return padded


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
    joined = np.concatenate(list(parts))
    return pad(joined, [length for lengths in groups for length in lengths], width) if per_token else joined
