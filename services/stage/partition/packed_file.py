"""A packed partition as one file, which is mapped the next time instead of being made again.

    magic | tensors, each at a multiple of 64 bytes | description (JSON) | its length, SHA-256 and magic

The description is the file's end: what was cut short has none. It names the key that the content was made for, every tensor
and a checksum of all of them, which is compared before anything is used. Making such a file never changes one that is there
already: it is written under another name, synced, and renamed.
"""

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stagemesh.errors import CheckpointError

from .kernels import Kernels

# Part of every key: raise it when what is written, or how panels lie in it, changes.
LAYOUT = 1
SUFFIX = ".packed"
MAKING = ".making-"

_MAGIC = b"SMPACK01"
_ALIGNED = 64
_TAIL = 8 + 32 + len(_MAGIC)
_MOST_DESCRIPTION = 64 * 2**20
# Written, or read ahead, at a time.
_CHUNK = 8 * 2**20
_DTYPES = {str(each).removeprefix("torch."): each for each in (torch.float32, torch.bfloat16, torch.int64)}
# Linux: read pages in now and say whether that failed, where touching them would end the process; not in `mmap` yet.
_POPULATE_READ = 22
_NORESERVE = 0x4000


class PackedFileError(CheckpointError):
    """The file is damaged, incomplete, or is not what it is looked for."""


class StoppedError(Exception):
    """Writing was given up because nobody waits for it any more."""


@dataclass(slots=True)
class Packed:
    """What is in such a file.

    Attributes:
        tensors: by name.
        facts: what else is known: numbers, words and lists.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write(path: Path, key: str, packed: Packed, kernels: Kernels, stop: threading.Event) -> None:
    """Write the file; blocks for as long as the disk takes.

    Args:
        path: what it is called when it is complete.
        key: what it is made for.
        packed: contiguous tensors on the CPU.
        kernels: that make the checksum.
        stop: gives it up.

    Raises:
        StoppedError: `stop` was set.
        OSError: the disk's.
    """
    handle, making = tempfile.mkstemp(dir=path.parent, prefix=MAKING)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            described = _write_tensors(file.fileno(), packed.tensors, kernels, stop)
            described |= {"key": key, "facts": packed.facts}
            text = json.dumps(described).encode()
            tail = len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + _MAGIC
            _put(file.fileno(), memoryview(text + tail))
            os.fsync(file.fileno())
        os.replace(making, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(making)
        raise


def read(path: Path, key: str, kernels: Kernels) -> Packed:
    """Map the file. Its tensors lie in the mapping, which lasts as long as any of them.

    Raises:
        FileNotFoundError: there is none.
        PackedFileError: it must not be used.
    """
    data, size = _mapped(path)
    described = _description(data, size)
    if described.get("key") != key:
        raise PackedFileError("it was made for something else")
    packed = Packed(facts=described["facts"])
    state, end = torch.zeros(16, dtype=torch.int64), len(_MAGIC)
    try:
        for name, (dtype, shape, offset) in described["tensors"].items():
            kind, elements = _DTYPES[dtype], 1
            for each in shape:
                elements *= each
            nbytes = elements * kind.itemsize
            until = offset + -(-nbytes // _ALIGNED) * _ALIGNED
            if offset % _ALIGNED or offset < end or until > size or elements < 0:
                raise PackedFileError("its tensors do not lie one after the other")
            kernels.checksum(data[offset:until], state)
            packed.tensors[name] = data[offset : offset + nbytes].view(kind).view(shape)
            end = until
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise PackedFileError(f"its description is not understood ({type(error).__name__})") from error
    if described.get("sum") != _hex(state):
        raise PackedFileError("its content is not what was written")
    return packed


def _write_tensors(
    file: int, tensors: Mapping[str, torch.Tensor], kernels: Kernels, stop: threading.Event
) -> dict[str, Any]:
    """Magic and tensors; their description."""
    state, found = torch.zeros(16, dtype=torch.int64), dict[str, Any]()
    _put(file, memoryview(_MAGIC.ljust(_ALIGNED, b"\0")))
    at = _ALIGNED
    for name, tensor in tensors.items():
        for part in _padded(tensor):
            for first in range(0, len(part), _CHUNK):
                if stop.is_set():
                    raise StoppedError
                piece = part[first : first + _CHUNK]
                kernels.checksum(piece, state)
                _put(file, memoryview(piece.numpy()))
        found[name] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at)
        at += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    return {"tensors": found, "sum": _hex(state)}


def _padded(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Its bytes, in one or two parts whose sizes are multiples of what they are aligned to."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(flat) // _ALIGNED * _ALIGNED
    if whole:
        yield flat[:whole]
    if whole < len(flat):
        rest = torch.zeros(_ALIGNED, dtype=torch.uint8)
        rest[: len(flat) - whole] = flat[whole:]
        yield rest


def _put(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _hex(state: torch.Tensor) -> str:
    return bytes(state.view(torch.uint8).tolist()).hex()


def _mapped(path: Path) -> tuple[torch.Tensor, int]:
    """The file's bytes, read in, and how many they are."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _ALIGNED + _TAIL:
            raise PackedFileError("it is too short")
        flags, prot = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ
        try:
            whole = mmap.mmap(file.fileno(), size, flags=flags, prot=prot)
            _read_in(whole)
        except OSError as error:
            raise PackedFileError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error
    with warnings.catch_warnings():
        # Nobody writes to it: it cannot be written to.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(whole, dtype=torch.uint8), size


def _read_in(whole: mmap.mmap) -> None:
    """All of it into memory, on large pages where the file system has them; fails instead of a later access."""
    for advice in (getattr(mmap, "MADV_HUGEPAGE", None), getattr(mmap, "MADV_WILLNEED", None)):
        with contextlib.suppress(OSError):  # it is only faster
            if advice is not None:
                whole.madvise(advice)
    try:
        whole.madvise(_POPULATE_READ)
    except OSError as error:
        if error.errno in (5, 14, 133):  # EIO, EFAULT, EHWPOISON; else a kernel that does not know it
            raise


def _description(data: torch.Tensor, size: int) -> dict[str, Any]:
    tail = bytes(data[size - _TAIL :].tolist())
    length = int.from_bytes(tail[:8], "little")
    if tail[40:] != _MAGIC or bytes(data[: len(_MAGIC)].tolist()) != _MAGIC:
        raise PackedFileError("it is incomplete")
    if not 0 < length <= min(size - _TAIL, _MOST_DESCRIPTION):
        raise PackedFileError("its description has no such length")
    text = bytes(data[size - _TAIL - length : size - _TAIL].numpy())
    if hashlib.sha256(text).digest() != tail[8:40]:
        raise PackedFileError("its description is damaged")
    try:
        found = json.loads(text)
        if (
            isinstance(found, dict)
            and isinstance(found["tensors"], dict)
            and isinstance(found["facts"], dict)
        ):
            return found
    except (ValueError, KeyError):
        pass
    raise PackedFileError("its description is not understood")
