"""What a stateless request looks like but for what its tensors hold: requests that are alike in it are checked once. Pure."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.inference_pb2 import InferRequest
from stagemesh.v1.registry_pb2 import TensorSpec
from stagemesh.v1.tensor_pb2 import Tensor

from .given import Input
from .micro_batch import MicroBatch

MAX_FORMS = 256
"""Forms kept of one model."""
WHOLE_ROWS = 64
"""Of a batch with more rows nothing is kept that grows with them."""


class Plain(NamedTuple):
    """A tensor that is computed with as it comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sizes: list[int]
    """The shape as messages compare with it."""
    nbytes: int


def as_they_come(inputs: Iterable[Tensor], computed: Mapping[str, Input]) -> tuple[Plain, ...] | None:
    """The inputs of a request that was found right; None where their bytes have to be looked at or converted.

    `computed` says by name what each is computed as.
    """
    plain = []
    for each in inputs:
        if each.dtype == "BOOL" or computed[each.name].dtype != each.dtype:
            return None
        sizes = list(each.shape)
        nbytes = math.prod(sizes) * ITEM_BYTES[each.dtype]
        plain.append(Plain(each.name, each.dtype, tuple(sizes), sizes, nbytes))
    return tuple(plain)


class Form(NamedTuple):
    """Of a request that was found right, where an answer may have so many bytes.

    `where` says which input each is, by name; `outputs` are those it is answered with, `asked` those it asked for. `whole` is
    all of it as one micro-batch, None where the lengths of its rows are part of what it holds, or there are more than
    `WHOLE_ROWS`.
    """

    inputs: tuple[Plain, ...]
    where: dict[str, str]
    asked: list[str]
    outputs: list[TensorSpec]
    whole: MicroBatch | None
    max_output_bytes: int

    def given(self, request: InferRequest, max_output_bytes: int) -> dict[str, Input] | None:
        """Its inputs by name; None where it is of another form, or one has not the bytes that it should, or has them elsewhere."""
        inputs = request.inputs
        if (
            len(inputs) != len(self.inputs)
            or request.outputs != self.asked
            or max_output_bytes != self.max_output_bytes
        ):
            return None
        found = {}
        for plain, tensor in zip(self.inputs, inputs, strict=True):
            if tensor.name != plain.name or tensor.dtype != plain.dtype or tensor.shape != plain.sizes:
                return None
            data = tensor.data  # each look at it is a copy
            if len(data) != plain.nbytes or tensor.encoding or tensor.HasField("shared"):
                return None
            found[plain.name] = Input(plain.name, plain.dtype, plain.shape, data)
        return found


class Forms:
    """Of one model's requests; `MAX_FORMS` at most. The latest is compared with before any is looked up."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Form] = {}
        self._latest: Form | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, request: InferRequest, max_output_bytes: int) -> tuple[Form, dict[str, Input]] | None:
        """The form that the request has, and its inputs; None where it has to be checked."""
        form = self._latest
        if form is not None and (given := form.given(request, max_output_bytes)) is not None:
            return form, given
        form = self._kept.get(_key(request.inputs, request.outputs, max_output_bytes))
        if form is None or (given := form.given(request, max_output_bytes)) is None:
            return None
        self._latest = form
        return form, given

    def keep(self, request: InferRequest, form: Form) -> None:
        """The request was found right, and has this form."""
        if len(self._kept) >= MAX_FORMS:
            self._kept.clear()
        self._kept[_key(request.inputs, request.outputs, form.max_output_bytes)] = self._latest = form


def _key(inputs: Iterable[Tensor], outputs: Sequence[str], max_output_bytes: int) -> Hashable:
    """Equal for requests that are alike."""
    return (
        tuple([(each.name, each.dtype, tuple(each.shape)) for each in inputs]),
        tuple(outputs),
        max_output_bytes,
    )
