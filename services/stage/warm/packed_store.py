"""Packed partitions on disk: the next load maps one and makes nothing.

A fresh page costs far more than what is written to it, above all in a virtual machine, so packing 400 MB takes as long as
getting 400 MB of memory; the pages of a file that was read lately are there. The files lie in `packed` in the node's data
folder, which nodes of one machine may share. A file is named after everything that its content follows from; one that is
damaged is removed, and the checkpoint loaded. Those used last stay, within `limit_bytes` and what the disk has to spare.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import transformers

from stagemesh import checkpoint as checkpoints
from stagemesh.checkpoint import Checkpoint
from stagemesh.metrics import counter
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec

from ..partition.interface import Partition
from ..partition.kernels import load_kernels
from ..partition.packed_file import LAYOUT, MAKING, SUFFIX, Packed, PackedFileError, read, write
from ..partition.trials import code_digest

log = logging.getLogger(__name__)

FILES = counter(
    "stagemesh_stage_packed_files_total",
    "Packed partitions on disk: hit (mapped), miss (there was none), damaged (removed unread), written, given_up (for another "
    "one), no_room (not written)",
    ("result",),
)
# A smaller partition is packed sooner than anybody notices.
LEAST_BYTES = 32 * 2**20
# Of the disk, what stays free.
SPARE = 0.1
# Left over by a process that was killed.
_OLD_S = 3600.0


class PackedStore:
    """The files of one folder. Its methods block, and may be called from any thread.

    Args:
        folder: made when something is written.
        limit_bytes: of all files together; 0 reads and writes none.
        least_bytes: smaller partitions are not written.
    """

    def __init__(self, folder: Path, limit_bytes: int, least_bytes: int = LEAST_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._least = least_bytes
        # What was packed by this process, and is not on disk as far as it knows.
        self._made: WeakKeyDictionary[Partition, tuple[str, Packed]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<PackedStore {self._folder} of {self._limit} bytes>"

    def key_of(self, spec: ModelSpec, assignment: Assignment, found: Checkpoint, folder: Path) -> str:
        """What a packed partition follows from, as one word: content, layers, dtype, layout, code and processor."""
        layers = assignment.partition
        facts: list[object] = [LAYOUT, found.revision, spec.task, spec.dtype, torch.get_num_threads()]
        facts += [layers.first_layer, layers.end_layer, code_digest(), transformers.__version__]
        if checkpoints.is_local(spec.source):
            # The revision has seen samples of the weights; whoever changes them leaves traces.
            for name in sorted({tensor.file for tensor in found.tensors.values()}):
                with contextlib.suppress(OSError):
                    status = (folder / name).stat()
                    facts += [name, status.st_size, status.st_mtime_ns]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:40]

    def find(self, key: str, dtype: torch.dtype) -> Packed | None:
        """The content of that key, mapped and checked; None when there is none that may be used."""
        kernels = load_kernels(dtype) if self._limit else None
        if kernels is None:
            return None
        path = self._path(key)
        try:
            packed = read(path, key, kernels)
            os.utime(path)
        except FileNotFoundError:
            FILES.labels("miss").inc()
            return None
        except PackedFileError as error:
            self.refuse(key, error.message)
            return None
        except OSError as error:
            log.warning("packed.unreadable: %s", error.strerror)
            FILES.labels("damaged").inc()
            return None
        FILES.labels("hit").inc()
        return packed

    def refuse(self, key: str, why: str) -> None:
        """That file must not be used; it goes."""
        log.warning("packed.damaged %s: %s", key, why)
        FILES.labels("damaged").inc()
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def note(self, key: str, partition: Partition) -> None:
        """This partition was packed just now, and may be written."""
        made: Packed | None = getattr(partition, "made", None)
        if made is not None and self._limit and made.nbytes >= self._least:
            self._made[partition] = key, made

    def owes(self, partition: Partition) -> bool:
        """Whether it is still to be written."""
        return partition in self._made

    def save(self, partition: Partition, stop: threading.Event) -> bool:
        """Write what was noted of it, in the place of what was used least recently; whether it is there now.

        Raises:
            StoppedError: `stop` was set.
            OSError: the disk's.
        """
        key, made = self._made.pop(partition)
        kernels = load_kernels(torch.float32)  # whichever: the checksum is of bytes
        assert kernels is not None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            # Nodes that share the folder write one after the other, and nothing twice.
            while not _locked(lock.fileno()):
                if stop.wait(0.2):
                    return False
            if self._path(key).exists():
                return True
            if not self._make_room(made.nbytes):
                log.info("packed.no_room: %d bytes", made.nbytes)
                FILES.labels("no_room").inc()
                return False
            started = time.monotonic()
            write(self._path(key), key, made, kernels, stop)
            FILES.labels("written").inc()
            log.info("packed.written %s: %d bytes in %.1f s", key, made.nbytes, time.monotonic() - started)
            return True

    def _make_room(self, nbytes: int) -> bool:
        """Remove files until `nbytes` more are within the limits; False when they cannot be."""
        disk = shutil.disk_usage(self._folder)
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.name.startswith(MAKING):
                    if time.time() - status.st_mtime > _OLD_S:
                        path.unlink()
                elif path.suffix == SUFFIX:
                    files.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in files)
        spare = disk.free - int(disk.total * SPARE)
        most = min(self._limit, used + spare)
        if nbytes > most:
            return False
        for _, size, path in sorted(files):
            if used + nbytes <= most:
                break
            path.unlink(missing_ok=True)
            FILES.labels("given_up").inc()
            used -= size
        return True

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
