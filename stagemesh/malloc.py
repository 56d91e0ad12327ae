"""How glibc keeps large blocks: a frame's buffer that goes back to the system is faulted in again by the next frame."""

import ctypes
import logging

log = logging.getLogger(__name__)

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# The largest message there is by default, and room for a few of them.
KEPT_BLOCK_BYTES = 64 * 2**20
KEPT_FREE_BYTES = 256 * 2**20


def keep_large_blocks() -> bool:
    """Let blocks of up to `KEPT_BLOCK_BYTES` come from the heap, and up to `KEPT_FREE_BYTES` of it stay when free.

    For processes that move tensors; call it first in `main`. False, and nothing changed, where there is no glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  others have mallopt too, with other numbers
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    done = mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
    if not done:
        log.info("malloc.unchanged")
    return bool(done)


def return_free_blocks() -> None:
    """Give free memory back to the system now, where that can be done: after a partition was unloaded."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    trim(0)
