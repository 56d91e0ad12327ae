"""What a model takes and gives in a stateless inference: named tensors, as checkpoints and packages describe them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stagemesh.tensor import NUMPY_DTYPES
from stagemesh.v1.registry_pb2 import (
    ROW_KIND_SAMPLE,
    ROW_KIND_TOKEN,
    ROW_KIND_UNSPECIFIED,
    ModelSpec,
    TensorSpec,
)

__all__ = ["ANY", "IDS", "MASKS", "NOTHING", "Signature", "Tensor", "token_inputs"]

ANY = -1
"""A dimension of any size."""
IDS = ("I64", "I32")
MASKS = ("I64", "I32", "BOOL", "U8", "I8")

_ROW_KINDS = {"": ROW_KIND_UNSPECIFIED, "token": ROW_KIND_TOKEN, "sample": ROW_KIND_SAMPLE}
_NAMES = {kind: name for name, kind in _ROW_KINDS.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output. See `TensorSpec` in registry.proto.

    Attributes:
        name: unique among the inputs, or among the outputs.
        dtypes: safetensors' names of what is taken, the one that is computed with first; an output has one.
        shape: -1 (`ANY`) is any size. The first dimension is the batch.
        optional: may be left out of a request.
        per_token: an output with a value for each token, `[batch, tokens, ...]`.
    """

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    optional: bool = False
    per_token: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.dtypes or not self.shape:
            raise ValueError(f"a tensor needs a name, a dtype and a dimension: {self}")
        unknown = [dtype for dtype in self.dtypes if dtype not in NUMPY_DTYPES and dtype != "BF16"]
        if unknown or any(size < 1 and size != ANY for size in self.shape):
            raise ValueError(f"not a tensor that can be described: {self}")

    def to_proto(self) -> TensorSpec:
        """The record's form."""
        return TensorSpec(
            name=self.name,
            dtypes=self.dtypes,
            shape=self.shape,
            optional=self.optional,
            per_token=self.per_token,
        )

    @classmethod
    def from_proto(cls, spec: TensorSpec) -> "Tensor":
        """Raises `ValueError` when the record describes no tensor."""
        return cls(spec.name, tuple(spec.dtypes), tuple(spec.shape), spec.optional, spec.per_token)


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in order.

    Attributes:
        inputs: what is taken.
        outputs: what is given. A request that names none gets the first one of text, and all of samples.
        rows: what one row of a pass is: "token" (inputs are [batch, tokens], right-padded, with an attention_mask
            beside them) or "sample" (every tensor has the batch as its first dimension).
        labels: names of a classifier's classes, by index.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    rows: Literal["", "token", "sample"] = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) < len(names):
                raise ValueError(f"a name is given twice: {names}")

    def write(self, spec: ModelSpec) -> None:
        """Into a model's desired state."""
        spec.inputs.extend(tensor.to_proto() for tensor in self.inputs)
        spec.outputs.extend(tensor.to_proto() for tensor in self.outputs)
        spec.rows = _ROW_KINDS[self.rows]
        spec.labels.extend(self.labels)

    @classmethod
    def read(cls, spec: ModelSpec) -> "Signature":
        """Out of a model's desired state. Raises `ValueError` when it holds none that can be used."""
        return cls(
            tuple(Tensor.from_proto(tensor) for tensor in spec.inputs),
            tuple(Tensor.from_proto(tensor) for tensor in spec.outputs),
            _NAMES[spec.rows],  # type: ignore[arg-type]
            tuple(spec.labels),
        )


NOTHING = Signature()


def token_inputs(optional: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """Token ids and their mask, and further inputs of the same shape that may be left out."""
    ids = Tensor("input_ids", IDS, (ANY, ANY))
    mask = Tensor("attention_mask", MASKS, (ANY, ANY), optional=True)
    return ids, mask, *(Tensor(name, IDS, (ANY, ANY), optional=True) for name in optional)
