"""Run a written package as a stage would, and compare it with its module before anybody serves it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stagemesh.errors import InternalError, InvalidArgument

from .export import BatchFixedError
from .load import example_name, load_pieces
from .manifest import Manifest

# The module, from a list of inputs to a list of outputs.
Call = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def prove(
    folder: Path, manifest: Manifest, inputs: Sequence[torch.Tensor], call: Call
) -> dict[str, torch.Tensor]:
    """Compare pieces and module at the example's batch, and at others when the batch is dynamic.

    Returns:
        The example's values at every boundary, by `example_name`.

    Raises:
        BatchFixedError: at another batch they differ, or samples depend on one another.
        InternalError: they differ at the example's batch.
    """
    programs, _ = load_pieces(folder, manifest, 0, manifest.layers, torch.device("cpu"))

    def run(given: Sequence[torch.Tensor], keep: dict[str, torch.Tensor] | None = None) -> list[torch.Tensor]:
        values = {spec.name: tensor.cpu() for spec, tensor in zip(manifest.inputs, given, strict=True)}
        for index, program in enumerate(programs):
            if keep is not None:
                keep.update({example_name(index, name): value for name, value in values.items()})
            # A link brings its tensors contiguous.
            values = {name: value.contiguous() for name, value in program(values).items()}
        if keep is not None:
            keep.update({example_name(len(programs), name): value for name, value in values.items()})
        return [values[spec.name] for spec in manifest.outputs]

    examples: dict[str, torch.Tensor] = {}
    whole = call(inputs)
    if why := _differ(manifest, run(inputs, examples), whole):
        raise InternalError(f"the package differs from its module: {why}")
    if manifest.dynamic:
        batch = inputs[0].shape[0]
        for size in (1, 2 * batch + 1):
            given = [torch.cat([tensor] * 3)[:size] if size > batch else tensor[:size] for tensor in inputs]
            try:
                wanted = call(given)
            except Exception as error:
                # The module's own code runs here.
                raise BatchFixedError(f"the module fails at a batch of {size}: {str(error)[:200]}") from error
            try:
                why = _differ(manifest, run(given), wanted)
            except InvalidArgument as error:
                why = error.message
            if why:
                raise BatchFixedError(f"at a batch of {size}: {why}")
            if why := _differ(manifest, [part[:1] for part in wanted], [part[:1] for part in whole]):
                raise BatchFixedError(f"samples of a batch depend on one another: {why}")
        turned = [part.flip(0) for part in call([tensor.flip(0) for tensor in inputs])]
        if why := _differ(manifest, turned, whole):
            raise BatchFixedError(f"samples of a batch depend on their order: {why}")
    return examples


def _differ(manifest: Manifest, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> str:
    for spec, one, other in zip(manifest.outputs, found, wanted, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{spec.name!r} is {one.dtype} {list(one.shape)}, the module's {other.dtype} {list(other.shape)}"
        if not one.numel():
            continue
        half = one.dtype in (torch.float16, torch.bfloat16)
        atol = (0.02 if half else 1e-4) * max(1.0, float(other.double().nan_to_num(0, 0, 0).abs().max()))
        if not torch.allclose(one.cpu().double(), other.cpu().double(), rtol=0, atol=atol, equal_nan=True):
            return f"{spec.name!r} differs by {float((one.cpu().double() - other.cpu().double()).abs().max()):.3g}"
    return ""
