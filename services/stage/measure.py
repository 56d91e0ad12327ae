"""What a node can do, measured in a fraction of a second when it starts."""

import time
from dataclasses import dataclass

import psutil
import torch

_SIDE = 768
_STREAM_BYTES = 64 * 2**20
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Dense float32 matmul rate in GFLOP/s, and streaming read rate in GB/s; the best of a few tries."""

    gflops: float
    memory_gbps: float


def choose_device(wanted: str) -> str:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N"."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_memory(device: str) -> int:
    """Bytes free on the device now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return int(psutil.virtual_memory().available)


def device_name(device: str) -> str:
    """The device's own name."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(torch.device(device)))
    return f"{psutil.cpu_count(logical=True)} CPUs"


@torch.inference_mode()
def measure_speed(device: str) -> Speed:
    """Measure with the threads that torch has now. Blocks for about a quarter of a second."""
    place = torch.device(device)
    square = torch.randn(_SIDE, _SIDE, device=place)
    stream = torch.ones(_STREAM_BYTES // 4, device=place)
    matmul = _best(lambda: square @ square, place)
    read = _best(lambda: stream.sum(), place)
    return Speed(2 * _SIDE**3 / matmul / 1e9, _STREAM_BYTES / read / 1e9)


def _best(work: object, place: torch.device) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        work()  # type: ignore[operator]
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - started)
    return min(times[1:])
