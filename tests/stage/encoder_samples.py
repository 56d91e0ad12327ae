"""Samples for models without sessions, through partitions and through the whole model."""

import itertools
from pathlib import Path
from typing import Any

import torch
from stagemesh.services.stage.partition.encoder import EncoderPartition
from stagemesh.services.stage.partition.encoder_build import whole_model
from stagemesh.services.stage.partition.encoder_plans import holder_of, plan_of
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.pooling import read_pooling
from stagemesh.services.stage.partition.ragged import Segment
from stagemesh.services.stage.tensors import to_view

from stagemesh.checkpoint import Checkpoint, inspect

# Tokens of each sample of text; two of one length go through together where lengths must be equal.
LENGTHS = [7, 3, 12, 1, 7, 30]
IMAGES = 3
AUDIO = 400


def samples_of(found: Checkpoint) -> tuple[dict[str, torch.Tensor], list[Segment]]:
    """Inputs of several samples, rows first."""
    generator = torch.Generator().manual_seed(1)
    lengths = LENGTHS if found.rows == "token" else [1] * IMAGES
    starts = itertools.accumulate(lengths, initial=0)
    segments = [Segment(start, length, 0) for start, length in zip(starts, lengths, strict=False)]
    rows, inputs = sum(lengths), {}
    for tensor in found.inputs:
        if tensor.name == "input_ids":
            inputs[tensor.name] = torch.randint(3, found.vocab_size, (rows,), generator=generator)
        elif tensor.name == "token_type_ids":
            inputs[tensor.name] = torch.randint(0, 2, (rows,), generator=generator)
        elif tensor.name != "attention_mask":
            sizes = [AUDIO if size < 0 else size for size in tensor.shape[1:]]
            inputs[tensor.name] = torch.randn(rows, *sizes, generator=generator)
    return inputs, segments


def load(folder: Path, cuts: list[int], fast: bool = False) -> list[EncoderPartition]:
    found = inspect(folder)
    return [
        load_partition(folder, found, task=found.task, first=first, end=end, fast=fast)
        for first, end in itertools.pairwise(cuts)
    ]


def through(
    parts: list[EncoderPartition], inputs: dict[str, torch.Tensor], segments: list[Segment], names: list[str]
) -> dict[str, torch.Tensor]:
    """All samples in one pass through all partitions."""
    lengths = [segment.rows for segment in segments]
    views = {name: to_view(tensor, name) for name, tensor in inputs.items()}
    done = parts[0].forward(Batch(segments, inputs=parts[0].inputs_of(views, lengths)))
    for part in parts[1:]:
        over = Activations(done.hidden.clone(), {name: side.clone() for name, side in done.sides.items()})
        done = part.forward(Batch(segments, given=part.check(sum(lengths), over)))
    return {name: parts[-1].output(name, done, lengths) for name in names}


@torch.inference_mode()
def alone(
    folder: Path, inputs: dict[str, torch.Tensor], segments: list[Segment]
) -> list[dict[str, torch.Tensor]]:
    """Each sample's outputs `[1, ...]` from the whole model, on its own and unpadded."""
    found = inspect(folder)
    model: Any = whole_model(folder, found)
    holder: Any = holder_of(model, plan_of(model.config))
    answers = []
    for segment in segments:
        rows = slice(segment.start, segment.start + segment.rows)
        one = {
            name: tensor[rows][None] if found.rows == "token" else tensor[rows]
            for name, tensor in inputs.items()
        }
        answer = {**holder(**one), **model(**one)}
        if "last_hidden_state" in answer and found.task == "embed":
            hidden = answer["last_hidden_state"][0]
            answer["sentence_embedding"] = read_pooling(folder)(hidden, [segment.rows])
        answers.append(answer)
    return answers


def worst(
    found: Checkpoint,
    split: dict[str, torch.Tensor],
    answers: list[dict[str, torch.Tensor]],
    segments: list[Segment],
) -> float:
    """The largest difference of any output, relative to that output's scale."""
    largest = 0.0
    for output in found.outputs:
        given = split[output.name]
        assert given.dtype == torch.float32
        scale = max(float(answer[output.name].abs().max()) for answer in answers)
        for index, (segment, answer) in enumerate(zip(segments, answers, strict=True)):
            own = (
                given[segment.start : segment.start + segment.rows][None]
                if output.per_token
                else given[index : index + 1]
            )
            expected = answer[output.name]
            assert own.shape == expected.shape, output.name
            assert all(want in (-1, have) for want, have in zip(output.shape[1:], own.shape[1:], strict=True))
            largest = max(largest, float((own - expected).abs().max()) / scale)
    return largest
