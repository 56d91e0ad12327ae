"""What a stage needs of a partition, whatever it is a part of: a language model, an encoder, an exported graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from stagemesh.tensor import TensorView

from .kv import KVLayout
from .ragged import Segment


@dataclass(slots=True)
class Activations:
    """What crosses the boundary between two partitions.

    Attributes:
        hidden: rows first. Of text a row is a token, otherwise it is a sample (or whatever an exported graph's
            first value is).
        sides: what else later partitions need, by name. Where rows of several sessions may go together each has
            one row per row of `hidden`.
    """

    hidden: torch.Tensor
    sides: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, parts: Sequence[slice]) -> "Activations":
        """Only some of the rows, in the order given."""
        return Activations(
            torch.cat([self.hidden[part] for part in parts]),
            {name: torch.cat([side[part] for part in parts]) for name, side in self.sides.items()},
        )


@dataclass(slots=True)
class Batch:
    """Rows that go through a partition together.

    Attributes:
        segments: whose rows they are, in order and without gaps.
        inputs: on the first partition: the model's inputs by name, one row per row.
        given: on the others: what the partition before computed.
    """

    segments: list[Segment]
    inputs: dict[str, torch.Tensor] | None = None
    given: Activations | None = None


class Partition(Protocol):
    """Some consecutive layers (or pieces) of a model on one device. Not thread-safe: one compute thread.

    Attributes:
        first_layer: index of the first layer.
        end_layer: one past the last.
        is_first: it takes the model's inputs.
        is_last: it gives the model's outputs.
        device: where it computes.
        weight_bytes: what its parameters and buffers take.
        generates: it keeps KV per session and, on the last partition, gives logits to sample from.
        ragged: rows of several sessions are computed together, and KV lies in blocks that prompts may share.
        kv_layout: what a session keeps of each position; no layers when it keeps nothing.
        vocab_size: token ids are below it; 0 when there are none.
        default_outputs: stateless outputs when a request names none.
    """

    first_layer: int
    end_layer: int
    is_first: bool
    is_last: bool
    device: torch.device
    weight_bytes: int
    generates: bool
    ragged: bool
    kv_layout: KVLayout
    vocab_size: int
    default_outputs: tuple[str, ...]

    def inputs_of(self, tensors: Mapping[str, TensorView], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """A stateless request's inputs on the device, checked; on the first partition.

        Args:
            tensors: by name, `[sum(lengths), ...]` each.
            lengths: rows of each sample.

        Raises:
            InvalidArgument: naming the input.
        """

    def check(self, rows: int, given: Activations) -> Activations:
        """What came over a link for `rows` rows, in the dtype that it is computed in.

        Raises:
            InternalError: it is not what the partition before gives.
        """

    def probe(self, segments: list[Segment]) -> Batch:
        """A batch of harmless values, for the canary."""

    def forward(self, batch: Batch) -> Activations:
        """What the next partition needs; on the last one what `logits` and `output` take.

        Raises:
            InvalidArgument: values that the model cannot compute with, and only it could tell.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, ...]` of `forward` on the last partition of a language model -> float32 `[rows, vocab]`."""

    def output(self, name: str, done: Activations, lengths: Sequence[int]) -> torch.Tensor:
        """A stateless output of the last partition.

        Args:
            name: one of the model's outputs.
            done: what `forward` gave for all rows of a request.
            lengths: rows of each sample.

        Raises:
            InvalidArgument: the model has no such output.
        """
