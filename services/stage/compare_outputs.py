"""Split against whole for models without sessions: every output that the checkpoint's signature names."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError

from .compare import Difference, distance, over_the_wire
from .partition.encoder_build import whole_model
from .partition.interface import Activations, Batch, Partition
from .partition.pooling import read_pooling
from .partition.ragged import Segment
from .tensors import to_view

# Tokens of each sample of text.
LENGTHS = (5, 2, 23, 12)
SAMPLES = 3
# A dimension that may have any size.
ANY_SIZE = 32
# Of audio: longer than the convolutions that begin such a model.
SOUND = 4000


@torch.inference_mode()
def compare_outputs(folder: Path, found: Checkpoint, parts: Sequence[Partition]) -> Difference:
    """Samples of different lengths, or several images, in one pass, against each alone in the whole model.

    Raises:
        CheckpointError: the checkpoint does not say what it takes and gives.
    """
    if not found.inputs or not found.outputs:
        raise CheckpointError(f"architecture {found.architecture!r} has no known inputs and outputs")
    samples, lengths = _samples(found)
    split = _through(parts, samples, lengths, [output.name for output in found.outputs])
    whole = whole_model(folder, found)
    worst, scale = 0.0, 0.0
    starts = list(itertools.accumulate(lengths, initial=0))
    for index, length in enumerate(lengths):
        rows = slice(starts[index], starts[index] + length)
        alone = _alone(whole, folder, {name: tensor[rows] for name, tensor in samples.items()}, found)
        for output in found.outputs:
            own = rows if output.per_token else slice(index, index + 1)
            expected = alone[output.name].float()
            expected = expected[0] if output.per_token else expected
            worst = max(worst, distance(split[output.name][own].float(), expected))
            scale = max(scale, float(expected.abs().max()))
    return Difference(worst, scale)


def _samples(found: Checkpoint) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Inputs of several samples, rows first, and the rows of each."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1] * SAMPLES
    if found.rows == "token":
        longest = found.context_length or max(LENGTHS)
        lengths = [min(length, longest) for length in LENGTHS]
    rows = sum(lengths)
    made: dict[str, torch.Tensor] = {}
    for tensor in found.inputs:
        if tensor.name == "attention_mask":
            continue
        if tensor.name == "token_type_ids":
            made[tensor.name] = torch.zeros(rows, dtype=torch.int64)
        elif found.rows == "token":
            made[tensor.name] = _ids(found, rows, generator)
        else:
            longest = SOUND if tensor.name == "input_values" else ANY_SIZE
            shape = [longest if size < 0 else size for size in tensor.shape[1:]]
            made[tensor.name] = torch.randn(rows, *shape, generator=generator)
    return made, lengths


def _ids(found: Checkpoint, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Ids without the special ones at the beginning of most vocabularies, which models treat in ways of their own."""
    low = min(5, found.vocab_size - 1)
    return torch.randint(low, found.vocab_size, (rows,), generator=generator)


def _through(
    parts: Sequence[Partition], samples: Mapping[str, torch.Tensor], lengths: list[int], outputs: list[str]
) -> dict[str, torch.Tensor]:
    starts = itertools.accumulate(lengths, initial=0)
    segments = [Segment(start, length, 0) for start, length in zip(starts, lengths, strict=False)]
    views = {name: to_view(tensor, name) for name, tensor in samples.items()}
    given: Activations | None = None
    for part in parts:
        if given is None:
            batch = Batch(segments, inputs=part.inputs_of(views, lengths))
        else:
            batch = Batch(segments, given=part.check(sum(lengths), over_the_wire(given, part.device)))
        given = part.forward(batch)
    assert given is not None
    return {name: parts[-1].output(name, given, lengths) for name in outputs}


def _alone(
    whole: Any, folder: Path, sample: dict[str, torch.Tensor], found: Checkpoint
) -> dict[str, torch.Tensor]:
    """Outputs `[1, ...]` of one sample."""
    text = found.rows == "token"
    given = {name: tensor[None] if text else tensor for name, tensor in sample.items()}
    answer = whole(**given)
    outputs = {name: value for name, value in answer.items() if isinstance(value, torch.Tensor)}
    if any(output.name == "sentence_embedding" for output in found.outputs):
        hidden = answer.last_hidden_state[0]
        outputs["sentence_embedding"] = read_pooling(folder)(hidden, [hidden.shape[0]])
    return outputs
