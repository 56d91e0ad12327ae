"""Cuts a batch into micro-batches, and puts the answers back in order. Pure; payloads are bytes of any dtype."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stagemesh.errors import InternalError
from stagemesh.tensor import ITEM_BYTES

MAX_TOKENS = 4096
MAX_ROWS = 64
MAX_BYTES = 2**21
MAX_SAMPLES = 1024
PARTS_PER_STAGE = 4
"""Micro-batches that keep a pipeline busy: with n of them, P stages compute for n / (n + P - 1) of the time."""
PARTS_PER_REPLICA = 2
"""Of a model in one piece: enough for the routes to even out."""
WORTH_TOKENS = 64
"""A micro-batch of its own must bring at least that many tokens, or it costs more than the overlap gives back."""
WORTH_BYTES = 2**14
"""The same for samples, whose work nobody knows."""


def wanted_parts(stages: int, replicas: int) -> int:
    """Micro-batches that keep `replicas` pipelines of `stages` busy; 1 where there is nothing to share."""
    if stages > 1:
        return PARTS_PER_STAGE * stages * replicas
    return PARTS_PER_REPLICA * replicas if replicas > 1 else 1


def plan(
    lengths: Sequence[int],
    stages: int = 1,
    replicas: int = 1,
    *,
    max_tokens: int = MAX_TOKENS,
    max_rows: int = MAX_ROWS,
) -> list[range]:
    """Consecutive rows of text that travel together, within both bounds; one longer than `max_tokens` goes alone.

    Over several stages or replicas a batch is cut finer, so that they work on different parts at the same time.
    """
    if (parts := wanted_parts(stages, replicas)) > 1:
        max_tokens = min(max_tokens, max(-(-sum(lengths) // parts), WORTH_TOKENS))
    cut: list[range] = []
    start, tokens = 0, 0
    for row, length in enumerate(lengths):
        if row > start and (tokens + length > max_tokens or row - start == max_rows):
            cut.append(range(start, row))
            start, tokens = row, 0
        tokens += length
    if start < len(lengths):
        cut.append(range(start, len(lengths)))
    return cut


def plan_samples(
    rows: int,
    row_bytes: int,
    stages: int = 1,
    replicas: int = 1,
    *,
    max_bytes: int = MAX_BYTES,
    max_rows: int = MAX_SAMPLES,
) -> list[range]:
    """Consecutive samples that travel together, evenly, within both bounds; one larger than `max_bytes` goes alone."""
    most = max(1, min(max_rows, max_bytes // row_bytes))
    worth = min(rows, rows * row_bytes // WORTH_BYTES)
    count = max(-(-rows // most), min(wanted_parts(stages, replicas), worth))
    ends = [rows * part // count for part in range(count + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def pack(padded: np.ndarray, rows: range, lengths: Sequence[int]) -> np.ndarray:
    """[B, T, ...] -> [sum(lengths of rows), ...]: the rows' tokens one after the other, padding dropped."""
    return np.concatenate([padded[row, : lengths[row]] for row in rows])


class Piece(NamedTuple):
    """One output of one micro-batch: a row for each of its tokens or samples."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def check_piece(piece: Piece, lengths: Sequence[int], *, per_token: bool) -> None:
    """Raises `InternalError` when an answer has not one row for each token or sample."""
    expected = sum(lengths) if per_token else len(lengths)
    if not piece.shape or piece.shape[0] != expected:
        raise InternalError(f"a stage answered with shape {list(piece.shape)}, {expected} rows were expected")


def gather(pieces: Sequence[Piece], groups: Sequence[Sequence[int]], width: int, *, per_token: bool) -> Piece:
    """Join the micro-batches' answers: [B, width, ...] per token (zeros where padded), [B, ...] per sample.

    `groups` holds the lengths of each micro-batch's rows. Raises `InternalError` when the answers do not fit together.
    """
    first = pieces[0]
    if len(pieces) == 1:
        check_piece(first, groups[0], per_token=per_token)
        if not per_token:
            return first
        if min(groups[0]) == width:
            return Piece(first.dtype, (len(groups[0]), width, *first.shape[1:]), first.data)
    for piece, lengths in zip(pieces, groups, strict=True):
        check_piece(piece, lengths, per_token=per_token)
        if piece.dtype != first.dtype or piece.shape[1:] != first.shape[1:]:
            raise InternalError(
                f"stages answered one request with {first.dtype} {list(first.shape)} and "
                f"{piece.dtype} {list(piece.shape)}"
            )
    rest = first.shape[1:]
    every = [length for group in groups for length in group]
    if not per_token:
        return Piece(first.dtype, (len(every), *rest), b"".join(piece.data for piece in pieces))
    shape = (len(every), width, *rest)
    if min(every) == width:  # nothing was padded
        return Piece(first.dtype, shape, b"".join(piece.data for piece in pieces))
    token = math.prod(rest) * ITEM_BYTES[first.dtype]
    padded: list[bytes | memoryview] = []
    zeros = memoryview(bytes(width * token))
    for piece, group in zip(pieces, groups, strict=True):
        data, start = memoryview(piece.data), 0
        for length in group:
            padded += data[start : start + length * token], zeros[: (width - length) * token]
            start += length * token
    return Piece(first.dtype, shape, b"".join(padded))
