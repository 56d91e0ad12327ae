"""What a stateless request looks like but for what its tensors hold: requests that are alike in it are checked once. Pure."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.registry_pb2 import TensorSpec
from stagemesh.v1.tensor_pb2 import Tensor

from .given import Input

MAX_FORMS = 256
"""Forms kept of one model."""


def form_key(inputs: Iterable[Tensor], outputs: Iterable[str], max_output_bytes: int) -> Hashable:
    """Equal for requests that are alike."""
    return (
        tuple([(each.name, each.dtype, tuple(each.shape)) for each in inputs]),
        tuple(outputs),
        max_output_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Plain:
    """A tensor that is computed with as it comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """Of a request that was found right.

    `where` says which input each is, by name; `outputs` are those it is answered with.
    """

    inputs: tuple[_Plain, ...]
    where: dict[str, str]
    outputs: list[TensorSpec]

    @classmethod
    def of(
        cls, inputs: Sequence[Tensor], computed: Mapping[str, Input], outputs: list[TensorSpec]
    ) -> "Form | None":
        """The form of these inputs; None where their bytes have to be looked at or converted.

        Args:
            inputs: of a request that was found right.
            computed: by name, what each is computed as.
            outputs: that it is answered with.
        """
        plain = []
        for each in inputs:
            if each.dtype == "BOOL" or computed[each.name].dtype != each.dtype:
                return None
            shape = tuple(each.shape)
            plain.append(_Plain(each.name, each.dtype, shape, math.prod(shape) * ITEM_BYTES[each.dtype]))
        where = {each.name: f"inputs[{index}]" for index, each in enumerate(inputs)}
        return cls(tuple(plain), where, outputs)

    def given(self, inputs: Sequence[Tensor]) -> dict[str, Input] | None:
        """Them by name; None where one has not the bytes that it should, or has them elsewhere."""
        found = {}
        for plain, tensor in zip(self.inputs, inputs, strict=True):
            data = tensor.data  # each look at it is a copy
            if len(data) != plain.nbytes or tensor.encoding or tensor.HasField("shared"):
                return None
            found[plain.name] = Input(plain.name, plain.dtype, plain.shape, data)
        return found
