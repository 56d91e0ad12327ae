"""What a first partition accepts of a stateless request, from the checkpoint's own signature."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import InvalidArgument, OutOfRange
from stagemesh.signature import ANY, Tensor
from stagemesh.tensor import TensorView

from ..tensors import from_view

_MASK = "attention_mask"
# What stands for a dimension of any size in a probe.
_SOME = 4000


class InputRules:
    """Checks inputs and makes harmless ones.

    Args:
        checkpoint: names, dtypes and shapes.
        dtype: that floats are computed in.
        device: where to.
        types: token types are below it.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, types: int) -> None:
        # A mask became lengths on the way here.
        self._inputs = {tensor.name: tensor for tensor in checkpoint.inputs if tensor.name != _MASK}
        self._text = checkpoint.rows == "token"
        self._longest = checkpoint.context_length
        self._limits = {"input_ids": checkpoint.vocab_size, "token_type_ids": types}
        self._dtype = dtype
        self._device = device

    def check(self, tensors: Mapping[str, TensorView], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs on the device.

        Raises:
            InvalidArgument: naming the input.
            OutOfRange: a sample is longer than the model's context.
        """
        if self._text and self._longest and max(lengths) > self._longest:
            message = f"input_ids: {max(lengths)} tokens exceed the context of {self._longest}"
            raise OutOfRange(message, field="input_ids")
        for name in tensors:
            if name not in self._inputs:
                raise InvalidArgument(f"inputs: unknown tensor {name[:40]!r}", field="inputs")
        out = {}
        for name, wanted in self._inputs.items():
            if name in tensors:
                out[name] = self._take(wanted, tensors[name], sum(lengths))
            elif not wanted.optional:
                raise InvalidArgument(f"inputs: {name} is missing", field=name)
        return out

    def _take(self, wanted: Tensor, view: TensorView, rows: int) -> torch.Tensor:
        name = wanted.name
        shape = (rows,) if self._text else (rows, *wanted.shape[1:])
        dtypes = ("I64",) if self._text else wanted.dtypes
        fits = len(view.shape) == len(shape) and all(
            want in (have, ANY) for want, have in zip(shape, view.shape, strict=True)
        )
        if view.dtype not in dtypes or not fits or 0 in view.shape:
            raise InvalidArgument(
                f"{name}: needs {' or '.join(dtypes)} {list(shape)}, got {view.dtype} {list(view.shape)}",
                field=name,
            )
        tensor = from_view(view, self._device, name)
        if tensor.is_floating_point():
            return tensor.to(self._dtype)
        low, high = (int(value) for value in tensor.aminmax())
        if low < 0 or high >= self._limits[name]:
            what = (
                "an id is outside the vocabulary" if name == "input_ids" else "a type is outside the model's"
            )
            raise InvalidArgument(f"{name}: {what}", field=name)
        return tensor

    def probe(self, rows: int) -> dict[str, torch.Tensor]:
        """Ones as ids, or noise."""
        if self._text:
            return {"input_ids": torch.ones(rows, dtype=torch.int64, device=self._device)}
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(rows, *self._sizes(tensor), generator=generator).to(self._device, self._dtype)
            for name, tensor in self._inputs.items()
        }

    def stand_in(self, samples: int) -> dict[str, torch.Tensor]:
        """Inputs of the right shape that take no memory, for a model that looks at nothing but shapes."""
        zero = torch.zeros((), dtype=self._dtype, device=self._device)
        return {
            name: zero.expand(samples, *self._sizes(tensor))
            for name, tensor in self._inputs.items()
            if not tensor.optional
        }

    def _sizes(self, tensor: Tensor) -> list[int]:
        return [_SOME if size == ANY else size for size in tensor.shape[1:]]

    def positions(self, config: Any) -> int:
        """A likely number of positions per sample."""
        size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
        if isinstance(size, int) and isinstance(patch, int):
            return (size // patch) ** 2 + 1
        return int(getattr(config, "max_source_positions", 0) or 16)
