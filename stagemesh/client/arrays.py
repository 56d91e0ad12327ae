"""numpy arrays to and from the wire, bfloat16 included, which numpy itself does not have."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stagemesh.tensor import check_layout, from_numpy, to_numpy
from stagemesh.v1.tensor_pb2 import Tensor


def tensor_of(name: str, value: npt.ArrayLike) -> Tensor:
    """A tensor message; an array of `ml_dtypes.bfloat16` becomes BF16.

    Raises:
        InvalidArgument: naming the input when its dtype cannot be sent.
    """
    array = np.asarray(value)
    if array.dtype.name != "bfloat16":
        return from_numpy(name, array)
    tensor = from_numpy(name, array.view(np.uint16))
    tensor.dtype = "BF16"
    return tensor


def array_of(tensor: Tensor, field: str) -> npt.NDArray[Any]:
    """The array of a tensor message, read-only; BF16 becomes float32, which holds the same values.

    Raises:
        InvalidArgument: dtype, shape and payload do not fit together.
    """
    if tensor.dtype != "BF16" or tensor.encoding:
        return to_numpy(tensor, field)
    data = tensor.data
    check_layout("BF16", tensor.shape, len(data), field)
    widened = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    return widened.view(np.float32).reshape(tuple(tensor.shape))
