"""Payloads from one dtype to another, when no value changes. Pure (numpy only).

numpy has no bfloat16: arrays of `BF16` hold the bits, as unsigned 16-bit integers.
"""

import numpy as np

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import NUMPY_DTYPES

BITS = {**NUMPY_DTYPES, "BF16": "<u2"}


def convert(array: np.ndarray, given: str, wanted: str, field: str) -> np.ndarray:
    """The same values as `wanted`; `InvalidArgument` naming `field` where one of them cannot be had.

    NaN stays NaN. A value beyond `wanted`'s range, a fraction that an integer would lose, and digits that a shorter
    float would round are refused.
    """
    if given == wanted:
        return array
    values = _from_bf16(array) if given == "BF16" else array
    target = "F32" if wanted == "BF16" else wanted
    made = _cast(values, np.dtype(BITS[target]))
    if made is not None and wanted == "BF16":
        bits = made.view(np.uint32)
        made = (bits >> 16).astype(np.uint16) if not bool((bits & 0xFFFF).any()) else _rounded_nan(made, bits)
    if made is None:
        raise InvalidArgument(
            f"{field}: {given} values that {wanted}, which the model computes with, cannot hold exactly",
            field=field,
        )
    return made


def _cast(values: np.ndarray, target: np.dtype) -> np.ndarray | None:
    """None when a value changed."""
    # numpy calls I64 -> F64 safe, and it is not.
    if np.can_cast(values.dtype, target, "safe") and not (values.dtype.kind in "iu" and target.kind == "f"):
        return values.astype(target)
    if target.kind in "iu" and values.dtype.kind == "f" and not _within(values, target):
        return None
    with np.errstate(all="ignore"):
        made = values.astype(target)
        if made.dtype.kind == "f" and values.dtype.kind in "iu" and not _within(made, values.dtype):
            return None
        back = made.astype(values.dtype)
    same = back == values
    if values.dtype.kind == "f" and made.dtype.kind == "f":
        same |= np.isnan(values) & np.isnan(made)
    # Unsigned and signed of one width turn into one another and back again.
    if values.dtype.kind in "iu" and made.dtype.kind in "iu":
        same &= (made < 0) == (values < 0)
    return made if bool(same.all()) else None


def _within(values: np.ndarray, integers: np.dtype) -> bool:
    """Whether all these floats lie in the range of an integer dtype; casting others is undefined."""
    info = np.iinfo(integers)
    exact = values.astype(np.float64)
    return bool(((exact >= float(info.min)) & (exact < float(info.max) + (info.bits < 64))).all())


def _from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded_nan(values: np.ndarray, bits: np.ndarray) -> np.ndarray | None:
    """bfloat16 of floats of which only NaN may have more bits than fit."""
    nan = np.isnan(values)
    if bool((bits[~nan] & 0xFFFF).any()):
        return None
    return np.where(nan, np.uint32(0x7FC0), bits >> 16).astype(np.uint16)
