"""The compiled kernels of kernels.c, when they were built and this CPU can run them.

Every function takes contiguous CPU tensors of one dtype (float32 or bfloat16) whose shapes the caller has checked.
"""

import ctypes
import functools
import importlib.machinery
import logging
from pathlib import Path

import torch

from stagemesh.prefix import BLOCK

log = logging.getLogger(__name__)

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[type]] = {
    "add_rms_norm": [_P, _P, _P, _P, _I, _I, _F],
    "rope_store": [_P, _P, _P, _P, _P, _F, _P, _P, _P, _I, _I, _I, _I],
    "silu_mul": [_P, _P, _I, _I],
    "pack_panels": [_P, _P, _I, _I],
    "linear": [_P, _P, _P, _P, _I, _I, _I, ctypes.c_int],
    "chunk": [*[_P] * 5, *[_I] * 8, ctypes.c_int, _F, ctypes.c_int],
    "paged_decode": [*[_P] * 8, *[_I] * 8, _F, ctypes.c_int],
}
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
# Columns of a panel, as in kernels.c.
PANEL = 32


class Kernels:
    """The kernels for one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, max_head_dim: int) -> None:
        self.dtype = dtype
        self.max_head_dim = max_head_dim
        self._chunk_floats = library.stagemesh_chunk_floats
        self._chunk_floats.argtypes = [_I]
        self._chunk_floats.restype = _I
        self._checksum = library.stagemesh_checksum
        self._checksum.argtypes = [_P, _I, _P]
        self._checksum.restype = None
        for name, arguments in _SIGNATURES.items():
            function = library[f"{name}_{_SUFFIX[dtype]}"]
            function.argtypes = arguments
            function.restype = None
            setattr(self, f"_{name}", function)

    def __repr__(self) -> str:
        return f"<Kernels {_SUFFIX[self.dtype]}>"

    def add_rms_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`hidden += delta` in place; returns the normalised `hidden` times `weight`, `[rows, width]`."""
        out = torch.empty_like(hidden)
        added = None if delta is None else delta.data_ptr()
        self._add_rms_norm(  # type: ignore[attr-defined]
            hidden.data_ptr(), added, weight.data_ptr(), out.data_ptr(), hidden.shape[0], hidden.shape[1], eps
        )
        return out

    def rope_store(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None,
        slots: torch.Tensor | None,
        arena: tuple[torch.Tensor, torch.Tensor] | None,
        heads: int,
        kv_heads: int,
    ) -> None:
        """Rotate queries and keys of `qkv` `[rows, (heads + 2 kv_heads) * head_dim]` in place, and store keys and values.

        Args:
            qkv: queries, keys and values side by side.
            cos: `[rows, head_dim]`; sin likewise.
            sin: see cos.
            norms: weights `[head_dim]` of the norm on queries and on keys, and its epsilon.
            slots: int64 `[rows]`, where in the arena each row's keys and values go; None stores nothing.
            arena: keys and values of the layer, `[positions, kv_heads, head_dim]`.
            heads: of queries.
            kv_heads: of keys and values.
        """
        query_norm, key_norm, eps = norms if norms is not None else (None, None, 0.0)
        self._rope_store(  # type: ignore[attr-defined]
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            None if query_norm is None else query_norm.data_ptr(),
            None if key_norm is None else key_norm.data_ptr(),
            eps,
            None if slots is None else slots.data_ptr(),
            None if arena is None else arena[0].data_ptr(),
            None if arena is None else arena[1].data_ptr(),
            qkv.shape[0],
            heads,
            kv_heads,
            cos.shape[1],
        )

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`[rows, 2 * width]` with the gate first -> `silu(gate) * up` `[rows, width]`."""
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), out.shape[0], out.shape[1])  # type: ignore[attr-defined]
        return out

    def pack_panels(self, weight: torch.Tensor, panels: torch.Tensor) -> None:
        """Write `weight` `[columns, depth]` (an even depth) into `panels`, `[ceil(columns / PANEL) * PANEL * depth]`."""
        self._pack_panels(weight.data_ptr(), panels.data_ptr(), *weight.shape)  # type: ignore[attr-defined]

    def checksum(self, data: torch.Tensor, state: torch.Tensor) -> None:
        """Add `data`, uint8 `[a multiple of 64]`, to the checksum `state`, int64 `[16]`, which is all zero at first."""
        self._checksum(data.data_ptr(), data.shape[0] // 8, state.data_ptr())

    def linear(
        self,
        inputs: torch.Tensor,
        panels: torch.Tensor,
        bias: torch.Tensor | None,
        columns: int,
        threads: int,
    ) -> torch.Tensor:
        """`[rows, depth]` times a weight in panels, plus `bias` `[columns]` -> `[rows, columns]`."""
        rows, depth = inputs.shape
        out = inputs.new_empty((rows, columns))
        added = None if bias is None else bias.data_ptr()
        self._linear(  # type: ignore[attr-defined]
            inputs.data_ptr(), panels.data_ptr(), added, out.data_ptr(), rows, depth, columns, threads
        )
        return out

    def chunk(
        self,
        query: torch.Tensor,
        out: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        causal: bool,
        scale: float,
        threads: int,
    ) -> None:
        """Attention of consecutive rows of one session, `position` onwards, over all keys up to theirs.

        Args:
            query: `[rows, columns]`; the first `heads * head_dim` columns of a row are its queries.
            out: `[rows, heads * head_dim]`, contiguous; is written.
            keys: `[position + rows, kv_heads, head_dim]`; a position's own values lie side by side. Values likewise.
            values: see keys.
            position: of the first row.
            causal: a row sees the positions up to its own; else all.
            scale: factor on the scores.
            threads: how many may work on it.
        """
        _, kv_heads, head_dim = keys.shape
        scratch = torch.empty(threads * self._chunk_floats(head_dim))
        self._chunk(  # type: ignore[attr-defined]
            query.data_ptr(),
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            scratch.data_ptr(),
            query.shape[0],
            position,
            query.stride(0),
            keys.stride(0),
            values.stride(0),
            out.shape[1] // head_dim,
            kv_heads,
            head_dim,
            causal,
            scale,
            threads,
        )

    def paged_decode(
        self,
        query: torch.Tensor,
        out: torch.Tensor,
        arena: tuple[torch.Tensor, torch.Tensor],
        rows: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        longest: int,
        scale: float,
        threads: int,
    ) -> None:
        """Attention of single query rows over their sessions' blocks.

        Args:
            query: `[tokens, columns]`; a row's first `heads * head_dim` columns are its queries.
            out: `[tokens, heads * head_dim]`; the given rows are written.
            arena: keys and values of the layer, `[positions, kv_heads, head_dim]`.
            rows: int64 `[count]`, which rows.
            tables: int32 `[count, blocks]`, block numbers of each row's session.
            lengths: int64 `[count]`, positions to attend to, the row's own included.
            longest: the largest of `lengths`.
            scale: factor on the scores.
            threads: how many may work on it.
        """
        keys, values = arena
        _, kv_heads, head_dim = keys.shape
        heads = out.shape[1] // head_dim
        scratch = torch.empty(threads * (heads // kv_heads) * longest)
        self._paged_decode(  # type: ignore[attr-defined]
            query.data_ptr(),
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            rows.data_ptr(),
            tables.data_ptr(),
            lengths.data_ptr(),
            scratch.data_ptr(),
            rows.shape[0],
            query.shape[1],
            tables.shape[1],
            longest,
            heads,
            kv_heads,
            head_dim,
            BLOCK,
            scale,
            threads,
        )


@functools.cache
def load_kernels(dtype: torch.dtype) -> Kernels | None:
    """The kernels for a dtype; None when they were not built, were built for another CPU, or lack the dtype."""
    library = _library()
    if library is None or dtype not in _SUFFIX:
        return None
    library.stagemesh_max_head_dim.restype = ctypes.c_int
    return Kernels(library, dtype, library.stagemesh_max_head_dim())


def kernels_file() -> Path | None:
    """Where the compiled kernels lie; None when they were not built."""
    folder = Path(__file__).parent
    files = [folder / f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return next((file for file in files if file.exists()), None)


@functools.cache
def _library() -> ctypes.CDLL | None:
    file = kernels_file()
    if file is None:
        log.info("the compiled kernels were not built: decode steps run on torch alone")
        return None
    try:
        # torch is loaded, so its OpenMP runtime serves the kernels too: one pool of threads, not two.
        library = ctypes.CDLL(str(file))
        library.stagemesh_isa.restype = ctypes.c_char_p
        isa = library.stagemesh_isa().decode()
    except (OSError, AttributeError) as error:
        log.warning("the compiled kernels cannot be loaded: %s", error)
        return None
    if isa and isa not in _cpu_flags():
        log.warning("the compiled kernels need a CPU with %s: not used", isa)
        return None
    return library


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            return set(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return set()
