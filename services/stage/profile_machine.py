"""What decides how long a layer takes besides its shape; and how fast the disk gives weights."""

import os
import time
from pathlib import Path

import torch
import transformers

import stagemesh
from stagemesh.planning.profile import Hardware

from .measure import device_name

__all__ = ["disk_gbps", "hardware"]

_MOST_BYTES = 64 * 2**20
_BLOCK = 4 * 2**20
_LEAST_BYTES = 2**20


def hardware(device: str, fast: bool) -> Hardware:
    """With the threads that torch has now."""
    return Hardware(
        device=device,
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        fast=fast,
        versions=(stagemesh.__version__, torch.__version__, transformers.__version__),
    )


def disk_gbps(folder: Path, budget_s: float = 0.5) -> float:
    """GB/s of reading the largest weights file's beginning from the disk, not from the page cache; 0 if unknown.

    The system is asked to drop the pages that it reads, which it may not do (another process has them mapped).
    """
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size, reverse=True)
    if not files or files[0].stat().st_size < _LEAST_BYTES or not hasattr(os, "posix_fadvise"):
        return 0.0
    handle = os.open(files[0], os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, _MOST_BYTES, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        done = 0
        while done < _MOST_BYTES and time.perf_counter() - started < budget_s:
            read = len(os.read(handle, _BLOCK))
            if not read:
                break
            done += read
        return done / (time.perf_counter() - started) / 1e9
    finally:
        os.close(handle)
