"""One input of a stateless request as the model computes with it: its bytes, its array, or both once both are needed. Pure."""

import numpy as np

from .lossless import BITS


class Input:
    """Row-major, little-endian values of `dtype`; what is sent on as it came never needs its array."""

    __slots__ = ("_array", "_data", "dtype", "name", "shape")

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        data: bytes | None = None,
        array: np.ndarray | None = None,
    ) -> None:
        """Give `data`, or `array` (of that shape, of `BITS[dtype]`)."""
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._data = data
        self._array = array

    def __repr__(self) -> str:
        return f"Input({self.name!r}, {self.dtype}, {list(self.shape)})"

    @property
    def data(self) -> bytes:
        """The bytes."""
        if self._data is None:
            self._data = self.array.tobytes()
        return self._data

    @property
    def array(self) -> np.ndarray:
        """The array; of BF16 it holds the bits."""
        if self._array is None:
            self._array = np.frombuffer(self.data, BITS[self.dtype]).reshape(self.shape)
        return self._array
