"""Arguments of operations between torch and their JSON form (`graph_form.py`), and names of dtypes."""

import math
from collections.abc import Callable
from typing import Any

import torch

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MEMORY = {
    "contiguous": torch.contiguous_format,
    "preserve": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_MEMORY_NAMES = {value: name for name, value in _MEMORY.items()}


def encode(value: Any, name_of: Callable[[Any], str]) -> Any:
    """The JSON form of an argument; `name_of` names the node that an operand comes from.

    Raises:
        TypeError: it has none.
    """
    if isinstance(value, torch.fx.Node):
        return {"value": name_of(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list | tuple):
        return [encode(item, name_of) for item in value]
    if isinstance(value, torch.dtype) and value in DTYPE_NAMES:
        return {"dtype": DTYPE_NAMES[value]}
    if isinstance(value, torch.device):
        return {"device": "own"}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _MEMORY_NAMES[value]}
    if value is torch.strided:
        return {"layout": "strided"}
    raise TypeError(f"{type(value).__name__} {str(value)[:40]}")


def constant(mark: str, what: str, device: torch.device) -> Any:
    """What a marked argument other than a value means on `device`."""
    if mark == "dtype":
        return DTYPES[what]
    if mark == "device":
        return device
    if mark == "memory_format":
        return _MEMORY[what]
    if mark == "layout":
        return torch.strided
    return float(what)
