"""Split against whole: the same inputs through partitions, one after the other, and through the model library's own
model.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from .partition.interface import Activations, Batch, Partition
from .partition.kv import KVPool, SessionKV
from .partition.ragged import Segment
from .tensors import from_message, from_view, to_message, to_view


@dataclass(frozen=True, slots=True)
class Difference:
    """What a comparison found.

    Attributes:
        max_abs_error: largest absolute difference of float32 outputs.
        scale: largest absolute value among the whole model's.
        tokens_compared: greedy tokens.
        tokens_equal: of them.
    """

    max_abs_error: float
    scale: float
    tokens_compared: int = 0
    tokens_equal: int = 0


@torch.inference_mode()
def compare_generation(
    folder: Path, parts: Sequence[Partition], prompts: list[list[int]], new: int, chunk: int = 0
) -> Difference:
    """Greedy tokens of all prompts served together, against each prompt alone in the whole model without a cache.

    Both see the whole model's tokens, so that one near tie does not make all that follow incomparable.

    Args:
        folder: the checkpoint.
        parts: in order.
        prompts: token ids.
        new: tokens to generate for each.
        chunk: most tokens of a prompt in one pass; 0 is all.
    """
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    layouts = [part.kv_layout for part in parts]
    rooms = [sum(layout.sequence_bytes(len(prompt) + new) for prompt in prompts) for layout in layouts]
    pools = [KVPool(room, layout) for room, layout in zip(rooms, layouts, strict=True)]
    kvs = [[pool.reserve(len(prompt) + new) for prompt in prompts] for pool in pools]
    sequences = [list(prompt) for prompt in prompts]
    positions = [0] * len(prompts)
    worst, scale, equal = 0.0, 0.0, 0
    for _ in range(new):
        logits = _advance(parts, kvs, sequences, positions, chunk)
        for row, sequence in enumerate(sequences):
            expected = whole(torch.tensor([sequence]), use_cache=False).logits[0, -1].float()
            worst = max(worst, distance(logits[row], expected))
            scale = max(scale, float(expected.abs().max()))
            token = int(expected.argmax())
            equal += token == int(logits[row].argmax())
            sequence.append(token)
    return Difference(worst, scale, len(prompts) * new, equal)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or a value is not a number."""
    if one.shape != other.shape:
        return float("inf")
    apart = (one - other).abs()
    # Both minus infinity: a token that the model rules out.
    return float(torch.where(one == other, 0.0, apart).nan_to_num(float("inf")).max())


def _advance(
    parts: Sequence[Partition],
    kvs: list[list[SessionKV]],
    sequences: list[list[int]],
    positions: list[int],
    chunk: int,
) -> torch.Tensor:
    """Compute what is new of every sequence, all sessions in one pass; logits `[sessions, vocab]` after the last rows."""
    rows: dict[int, torch.Tensor] = {}
    while len(rows) < len(sequences):
        taking = [index for index in range(len(sequences)) if positions[index] < len(sequences[index])]
        steps = [sequences[i][positions[i] :][: chunk or None] for i in taking]
        own = [[stage[i] for i in taking] for stage in kvs]
        done, segments = run_pass(parts, steps, [positions[i] for i in taking], own)
        for index, step, segment in zip(taking, steps, segments, strict=True):
            positions[index] += len(step)
            if positions[index] == len(sequences[index]):
                rows[index] = done.hidden[segment.start + segment.rows - 1]
    return parts[-1].logits(torch.stack([rows[index] for index in range(len(sequences))]))


def run_pass(
    parts: Sequence[Partition],
    steps: list[list[int]],
    positions: list[int],
    kvs: Sequence[Sequence[SessionKV | None]],
) -> tuple[Activations, list[Segment]]:
    """Token ids of several sessions through every partition, over the wire's form in between."""
    starts = list(itertools.accumulate([len(tokens) for tokens in steps], initial=0))
    given: Activations | None = None
    segments: list[Segment] = []
    for part, own in zip(parts, kvs, strict=True):
        segments = [
            Segment(start, len(tokens), position, kv)
            for start, tokens, position, kv in zip(starts, steps, positions, own, strict=False)
        ]
        if given is None:
            ids = torch.tensor([token for tokens in steps for token in tokens])
            batch = Batch(segments, inputs={"input_ids": ids})
        else:
            batch = Batch(segments, given=part.check(starts[-1], over_the_wire(given, part.device)))
        given = part.forward(batch)
    assert given is not None
    return given, segments


def over_the_wire(given: Activations, device: torch.device) -> Activations:
    """The same values, as the next stage gets them."""
    sides = [to_message(side, name) for name, side in given.sides.items()]
    hidden = from_view(to_view(given.hidden), device)
    return Activations(hidden, {side.name: from_message(side, device) for side in sides})
