"""A pass over rows of many sessions without padding: where each row's keys and values lie, made once for all layers."""

import functools
import logging
import time
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from stagemesh.prefix import BLOCK

from .kernels import PANEL, Kernels
from .kv import KVPool, SessionKV

log = logging.getLogger(__name__)

# Segments of fewer rows read their keys for too few queries to be worth arranging them.
_CHUNK_ROWS = 8
_TRIES = 5


@dataclass(slots=True)
class Segment:
    """Rows of the batch that are one session's, `position` onwards; without `kv` the pass is stateless."""

    start: int
    rows: int
    position: int
    kv: SessionKV | None = None

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.position + self.rows


@dataclass(slots=True)
class _Singles:
    """Sessions with one row in the pass, which one kernel call serves together. See `Kernels.paged_decode`."""

    rows: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    longest: int


class Ragged:
    """The segments of a pass.

    Args:
        segments: in order and without gaps; either all of them have KV or none has.
        causal: a position sees only those before it.
        device: of the rows.
        kernels: compiled ones to use, if any.
    """

    def __init__(
        self, segments: list[Segment], causal: bool, device: torch.device, kernels: Kernels | None = None
    ) -> None:
        self.causal = causal
        self.kernels = kernels
        self.pool: KVPool | None = None
        # Where in the arena each row's keys and values go, int64 `[rows]`.
        self.slots: torch.Tensor | None = None
        self.positions = torch.tensor(
            [position for segment in segments for position in range(segment.position, segment.end)],
            device=device,
        )
        held = [(segment, segment.kv) for segment in segments if segment.kv is not None]
        if held:
            if len(held) < len(segments):
                raise ValueError("a pass is either of sessions with KV or of stateless ones")
            self.pool = held[0][1].pool
            slots = [slot for segment, kv in held for slot in kv.slots(segment.position, segment.rows)]
            self.slots = torch.tensor(slots, device=device)
        singles = [pair for pair in held if pair[0].rows == 1] if kernels is not None else []
        self._singles = _join(singles) if singles else None
        self._rest = [segment for segment in segments if not singles or segment.rows > 1]
        self._threads = torch.get_num_threads()

    def arena(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of a layer, `[positions, kv_heads, head_dim]`; None in a stateless pass."""
        return None if self.pool is None else self.pool.arena(layer)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        heads: int,
        scale: float,
    ) -> torch.Tensor:
        """Attention of every row; keys and values of rows with KV are in the arena already.

        Args:
            layer: within the partition.
            query: `[rows, columns]`, whose first `heads * head_dim` columns are the queries.
            keys: `[rows, kv_heads, head_dim]` of this pass; values likewise.
            values: see keys.
            heads: of queries.
            scale: factor on the scores.

        Returns:
            `[rows, heads * head_dim]`.
        """
        head_dim = keys.shape[2]
        out = query.new_empty((query.shape[0], heads * head_dim))
        arena = self.arena(layer)
        if self._singles is not None and arena is not None and self.kernels is not None:
            one = self._singles
            self.kernels.paged_decode(
                query, out, arena, one.rows, one.tables, one.lengths, one.longest, scale, self._threads
            )
        for segment in self._rest:
            rows = slice(segment.start, segment.start + segment.rows)
            k, v = keys[rows], values[rows]
            if segment.kv is not None and arena is not None and segment.position:
                k, v = (segment.kv.read(half, segment.end) for half in arena)
            if self._chunk_fits(segment, k, v, heads):
                assert self.kernels is not None
                self.kernels.chunk(
                    query[rows],
                    out[rows],
                    _side_by_side(k),
                    _side_by_side(v),
                    segment.position,
                    self.causal,
                    scale,
                    self._threads,
                )
                continue
            queries = query[rows, : heads * head_dim].unflatten(1, (heads, head_dim))
            out[rows] = _attend(queries, k, v, segment, self.causal, scale).flatten(1)
        return out

    def _chunk_fits(self, segment: Segment, keys: torch.Tensor, values: torch.Tensor, heads: int) -> bool:
        """Whether the compiled kernel computes this segment."""
        return (
            self.kernels is not None
            and segment.rows >= _CHUNK_ROWS
            and keys.dtype == values.dtype == self.kernels.dtype
            and keys.shape == values.shape
            and keys.shape[0] == segment.end
            and keys.shape[2] % PANEL == 0
            and keys.shape[2] <= self.kernels.max_head_dim
            and heads % keys.shape[1] == 0
            and _chunk_pays(self.kernels)
        )

    def done(self, segments: list[Segment]) -> None:
        """Every layer has run."""
        for segment in segments:
            if segment.kv is not None:
                segment.kv.length = segment.end


def _join(singles: list[tuple[Segment, SessionKV]]) -> _Singles:
    widths = [-(-segment.end // BLOCK) for segment, _ in singles]
    tables = torch.zeros((len(singles), max(widths)), dtype=torch.int32)
    for row, ((_, kv), width) in enumerate(zip(singles, widths, strict=True)):
        tables[row, :width] = kv.table[:width]
    lengths = [segment.end for segment, _ in singles]
    return _Singles(
        torch.tensor([segment.start for segment, _ in singles]), tables, torch.tensor(lengths), max(lengths)
    )


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segment: Segment,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """One segment: `[rows, heads, head_dim]` against `[positions, kv_heads, head_dim]`."""
    rows, heads, head_dim = query.shape
    positions, kv_heads, _ = keys.shape
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    group = heads // kv_heads
    if causal and rows > 1 and not segment.position:
        out = scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, is_causal=True, scale=scale, enable_gqa=group > 1
        )
        return out[0].transpose(0, 1)
    mask = None
    if causal and rows > 1:
        mask = torch.ones(rows, positions, dtype=torch.bool, device=keys.device)
        mask = mask.tril(diagonal=segment.position).repeat(group, 1)
    # The query heads that share a key head are as good as rows of one head, and torch need not repeat the keys
    # for each (several times faster on a CPU).
    grouped = query.reshape(rows, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    grouped = grouped.reshape(1, kv_heads, group * rows, head_dim)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    out = out.reshape(kv_heads, group, rows, head_dim).permute(2, 0, 1, 3)
    return out.reshape(rows, heads, head_dim)


def _side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    """`[positions, heads, width]` with each position's values in a row; copied only if they are not."""
    fits = tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]
    return tensor if fits else tensor.contiguous()


@functools.cache
@torch.inference_mode()
def _chunk_pays(kernels: Kernels) -> bool:
    """Whether the kernel gives torch's result here, sooner: a chunk behind 256 positions, tried once per dtype.

    The first chunk that comes along is the canary's, before a replica is ready.
    """
    rows, position, heads, kv_heads, head_dim, threads = 32, 256, 4, 2, 64, torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, heads), (position + rows, kv_heads), (position + rows, kv_heads))
    query, keys, values = (
        torch.randn(*shape, head_dim, generator=generator).to(kernels.dtype) for shape in shapes
    )
    segment, scale = Segment(0, rows, position), head_dim**-0.5
    flat = query.flatten(1)
    out = torch.empty_like(flat)
    ours_s, torch_s = [], []
    for _ in range(_TRIES):
        began = time.perf_counter()
        kernels.chunk(flat, out, keys, values, position, True, scale, threads)
        between = time.perf_counter()
        wanted = _attend(query, keys, values, segment, True, scale)
        ours_s.append(between - began)
        torch_s.append(time.perf_counter() - between)
    tolerance = 1e-4 if kernels.dtype == torch.float32 else 2e-2
    if not torch.allclose(out, wanted.flatten(1), rtol=tolerance, atol=tolerance):
        log.warning("the compiled attention of chunks gives other results on this machine: not used")
        return False
    log.info("the attention of a chunk takes %.2f of torch's time", min(ours_s) / min(torch_s))
    return min(ours_s) < min(torch_s)
