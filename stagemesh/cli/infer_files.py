"""Inputs of `infer` from files: .npz, .npy and JSON, in the dtypes that the model takes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import NUMPY_DTYPES
from stagemesh.v1.registry_pb2 import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]


def read_inputs(
    file: Path | None, named: Sequence[str], rules: Sequence[TensorSpec], *, cast: bool
) -> Arrays:
    """Arrays by input name, of FILE and of each `NAME=FILE` in `named`.

    `rules` are the model's inputs; a file that names none, .npy, is its only one. Numbers in JSON have no dtype and
    take the model's (where the model says nothing: whole numbers int64, others float32). Arrays of .npy and .npz keep
    theirs unless `cast`.

    Raises:
        InvalidArgument: naming the file or the input.
    """
    arrays: Arrays = {}
    native = {rule.name: rule.dtypes[0] for rule in rules if rule.dtypes}
    if file is not None:
        if file.suffix == ".npz":
            arrays = _npz(file)
        elif file.suffix == ".npy":
            arrays = {_only_input(file, rules): _npy(file)}
        else:
            arrays = {
                name: _numbers(name, value, native.get(name, "")) for name, value in _json(file).items()
            }
    for each in named:
        name, equals, path = each.partition("=")
        if not name or not equals or not path:
            raise InvalidArgument(f"--input: {each!r} is not NAME=FILE.npy", field="input")
        if name in arrays:
            raise InvalidArgument(f"--input: {name} is given twice", field="input")
        arrays[name] = _npy(Path(path))
    return {name: _cast(array, native.get(name, "")) if cast else array for name, array in arrays.items()}


def _npz(file: Path) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError) as error:
        raise InvalidArgument(f"{file.name}: not an .npz file of plain arrays", field="file") from error


def _npy(file: Path) -> npt.NDArray[Any]:
    try:
        with file.open("rb") as source:
            return np.asarray(np.lib.format.read_array(source, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"{file.name}: not an .npy file of a plain array", field="file") from error


def _only_input(file: Path, rules: Sequence[TensorSpec]) -> str:
    needed = [rule.name for rule in rules if not rule.optional]
    if len(needed) != 1:
        takes = (
            f"the model takes {', '.join(rule.name for rule in rules)}" if rules else "the model does not say"
        )
        raise InvalidArgument(
            f"{file.name}: which input is it? give --input NAME={file.name} ({takes})", field="file"
        )
    return needed[0]


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise InvalidArgument(f"{file.name}: not JSON ({error})", field="file") from error
    if not isinstance(content, dict) or not content:
        raise InvalidArgument(f"{file.name}: must be an object of name: array", field="file")
    return content


def _numbers(name: str, value: Any, native: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidArgument(f"{name}: rows of different lengths", field=name) from error
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(f"{name}: must hold only numbers, or only true and false", field=name)
    if array.dtype.kind == "f":
        return _cast(array, native) if native in ("F16", "BF16", "F64") else array.astype(np.float32)
    # Whole numbers may mean floats; what an integer or boolean input cannot hold, the router says.
    fits = array.dtype.kind in "ui" and native in ("F16", "BF16", "F32", "F64")
    return _cast(array, native) if fits else array


def _cast(array: npt.NDArray[Any], native: str) -> npt.NDArray[Any]:
    """As the model computes with it, rounded where need be; BF16 as the nearest float32 that it can hold."""
    if native == "BF16":
        bits = array.astype(np.float32).reshape(-1).view(np.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        kept = np.where(bits & 0x7FFFFFFF > 0x7F800000, np.uint32(0x7FC00000), nearest)
        return kept.astype(np.uint32).view(np.float32).reshape(array.shape)
    return array.astype(NUMPY_DTYPES[native]) if native in NUMPY_DTYPES else array
