"""The files of a checkpoint: bounded JSON, and safetensors headers checked against the files' sizes."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagemesh.errors import CheckpointError

MAX_HEADER_BYTES = 100 * 2**20
MAX_JSON_BYTES = 64 * 2**20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_SAMPLE_BYTES = 256


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a weights file."""

    # safetensors' dtype name.
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    # Name of the file in the checkpoint's folder.
    file: str
    # Where its bytes begin, counted from the end of the file's header.
    offset: int


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of at most 64 MiB; raise `CheckpointError` when it is missing or is none."""
    try:
        with (folder / name).open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise _broken(f"the checkpoint has no {name}") from None
    except OSError as error:
        raise _broken(f"{name} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_JSON_BYTES:
        raise _broken(f"{name} is larger than {MAX_JSON_BYTES} bytes")
    return _object(raw, name)


def read_index(folder: Path) -> dict[str, TensorInfo]:
    """Read every tensor's place from one `model.safetensors`, or from the shards that the index names.

    Raises `CheckpointError` when a file is missing, truncated or malformed, or when index and shards disagree.
    """
    if (folder / SINGLE).is_file():
        return _named(read_header(folder / SINGLE))
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            raise _broken("the weights must be safetensors; this checkpoint has only pickled ones")
        raise _broken(f"the checkpoint has no weights: neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(f"{INDEX} has no weight_map")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise _broken(f"{INDEX} names {shard[:80]!r}, which is no safetensors file of the checkpoint")
        tensors.update(read_header(folder / shard))
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != shard:
            raise _broken(f"{shard} does not hold {name[:120]!r}, though {INDEX} says so")
    return _named({name: tensors[name] for name in weight_map})


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of one safetensors file and check it against the file's size."""
    name = path.name
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            if start == b"version ":
                raise _broken(f"{name} is a Git LFS pointer, not the weights")
            if len(start) < 8:
                raise _broken(f"{name} is truncated: needs at least 8 bytes, has {size}")
            (length,) = struct.unpack("<Q", start)
            if length > MAX_HEADER_BYTES:
                raise _broken(f"{name} is no safetensors file: its header would have {length} bytes")
            if size < 8 + length:
                raise _broken(f"{name} is truncated: needs at least {8 + length} bytes, has {size}")
            raw = file.read(length)
    except FileNotFoundError:
        raise _broken(f"{name} is missing") from None
    except OSError as error:
        raise _broken(f"{name} cannot be read: {error.strerror}") from None
    tensors = parse_header(_object(raw, f"{name}'s header"), name)
    needed = 8 + length + max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=0)
    if size < needed:
        raise _broken(f"{name} is truncated: needs {needed} bytes, has {size}")
    if size > needed:
        raise _broken(f"{name} does not match its header: {needed} bytes expected, has {size}")
    return tensors


def parse_header(header: Mapping[str, Any], file: str) -> dict[str, TensorInfo]:
    """Turn a safetensors header into tensors, checking dtype, shape and byte range of each."""
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise _broken(f"{file}'s header: {name[:120]!r} lacks dtype, shape or data_offsets") from None
        if dtype not in ITEM_BYTES:
            raise _broken(f"{file}: {name[:120]!r} has the unsupported dtype {str(dtype)[:20]!r}")
        if not isinstance(shape, list) or not _naturals([*shape, begin, end]):
            raise _broken(f"{file}'s header: {name[:120]!r} has a bad shape or bad offsets")
        size = math.prod(shape) * ITEM_BYTES[dtype]
        if end - begin != size:
            raise _broken(
                f"{file}'s header: {name[:120]!r} needs {size} bytes, its offsets say {end - begin}"
            )
        tensors[name] = TensorInfo(dtype, tuple(shape), size, file, begin)
    return tensors


def sample_weights(folder: Path, tensors: Mapping[str, TensorInfo]) -> bytes:
    """Digest of a few bytes of every tensor: tells two trainings of one architecture apart, cheaply."""
    digest = hashlib.sha256()
    by_file: dict[str, list[TensorInfo]] = {}
    for tensor in tensors.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    for name in sorted(by_file):
        with (folder / name).open("rb") as file:
            data = 8 + struct.unpack("<Q", file.read(8))[0]
            for tensor in sorted(by_file[name], key=lambda tensor: tensor.offset):
                for part in (0, tensor.bytes // 2, max(0, tensor.bytes - _SAMPLE_BYTES)):
                    file.seek(data + tensor.offset + part)
                    digest.update(file.read(min(_SAMPLE_BYTES, tensor.bytes - part)))
    return digest.digest()


def _named(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    if not tensors:
        raise _broken("the weights hold no tensor")
    return tensors


def _naturals(values: Iterable[object]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise _broken(f"{name} is not valid JSON") from None
    if not isinstance(value, dict):
        raise _broken(f"{name} is not a JSON object")
    return value


def _broken(message: str) -> CheckpointError:
    return CheckpointError(message, field="source")


def positive(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The first of these settings of a configuration that is there, an integer of at least 1.

    Raises:
        CheckpointError: it is something else, or there is none and no default.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise CheckpointError(f"config.json: {key} must be a positive integer", field="source")
        return value
    if default is None:
        raise CheckpointError(f"config.json has no {keys[0]}", field="source")
    return default
