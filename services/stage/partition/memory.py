"""Memory for weights that are read from end to end at every step, on large pages where the system has them.

Reading 23 MB of a weight touches 5,600 small pages or 11 large ones; the large ones spare a tenth of the time.
"""

import ctypes
import functools
import mmap
from typing import Any

import torch

LARGE_PAGE = 2 * 2**20
_ALIGNED = 64
# What is asked for at once; the rest of it is lost.
_CHUNK = 32 * 2**20


class LargePages:
    """Hands out parts of large-page memory; what was handed out keeps its chunk alive."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised flat tensor on the CPU."""
        nbytes = elements * dtype.itemsize
        if self._used + nbytes > len(self._chunk):
            self._chunk = _large(max(nbytes, _CHUNK) if nbytes < _CHUNK // 2 else nbytes)
            self._used = 0
        found = self._chunk[self._used : self._used + nbytes]
        self._used += -(-nbytes // _ALIGNED) * _ALIGNED
        return found.view(dtype)


def _large(nbytes: int) -> torch.Tensor:
    """`nbytes` that begin at a large page's boundary."""
    whole = torch.empty(nbytes + LARGE_PAGE, dtype=torch.uint8)
    part = whole[-whole.data_ptr() % LARGE_PAGE :][:nbytes]
    advise = _madvise()
    if advise is not None:
        # Only whole pages: what follows belongs to somebody else. A refusal costs speed alone.
        advise(part.data_ptr(), nbytes // LARGE_PAGE * LARGE_PAGE, mmap.MADV_HUGEPAGE)
    return part


@functools.cache
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
