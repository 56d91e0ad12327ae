"""What a node can do, measured in a fraction of a second when it starts."""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

_SIDE = 768
_STREAM_BYTES = 64 * 2**20
_REPEATS = 3
# How long what was measured is believed.
_VALID_S = 24 * 3600.0


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


def known_speed(folder: Path, device: str) -> Speed:
    """What was measured on this machine not long ago, or is now. Blocks for about a quarter of a second if it must.

    Args:
        folder: keeps it; one that cannot be written to costs the time at the next start.
        device: a torch device.
    """
    facts = (
        f"{device}|{device_name(device)}|{torch.get_num_threads()}|{torch.__version__}|{psutil.boot_time()}"
    )
    path = folder / f"speed-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    try:
        if time.time() - path.stat().st_mtime < _VALID_S:
            return Speed(**{name: float(value) for name, value in json.loads(path.read_text()).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # it is not there, or not what is written here: measured anew
    speed = measure_speed(device)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(speed), file)
        Path(name).replace(path)
    return speed


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
