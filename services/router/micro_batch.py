"""What a head is asked with one micro-batch, but for what its tensors hold: found once for requests that are alike. Pure."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.registry_pb2 import ModelSpec, TensorSpec
from stagemesh.v1.stage_pb2 import ForwardRequest

from .given import Input


class MicroBatch(NamedTuple):
    """Some rows of a batch, without padding.

    `lengths` has the tokens of each, `tokens` their sum; `shapes` are the inputs', [tokens or samples, ...]. `nbytes` is
    the size of inputs or outputs, whichever is larger. `asked` is the message but for session, route, deadline and
    inputs; messages are copied from it, and it is not written to.
    """

    lengths: Sequence[int]
    tokens: int
    shapes: list[tuple[int, ...]]
    nbytes: int
    asked: ForwardRequest

    @classmethod
    def of(
        cls,
        inputs: Iterable[Input],
        lengths: Sequence[int],
        outputs: Sequence[TensorSpec],
        spec: ModelSpec,
        *,
        by_token: bool,
    ) -> "MicroBatch":
        """Rows of these lengths of a batch with these inputs, that gives these outputs."""
        tokens, shapes, nbytes = sum(lengths), [], 0
        for each in inputs:
            shape = (tokens, *each.shape[2:]) if by_token else (len(lengths), *each.shape[1:])
            shapes.append(shape)
            nbytes += math.prod(shape) * ITEM_BYTES[each.dtype]
        asked = ForwardRequest(
            model=spec.name,
            revision=spec.revision,
            lengths=lengths,
            outputs=[each.name for each in outputs],
        )
        answered = output_bytes(outputs, by_token, len(lengths), tokens)
        return cls(lengths, tokens, shapes, max(nbytes, answered), asked)


def output_bytes(outputs: Sequence[TensorSpec], by_token: bool, rows: int, tokens: int) -> int:
    """What the outputs of so many samples take, with so many tokens in all; a size that is not known counts as 1."""
    total = 0
    for each in outputs:
        per_token = by_token and each.per_token
        size = tokens if per_token else rows
        for dimension in each.shape[2 if per_token else 1 :]:
            size *= max(dimension, 1)
        total += size * (ITEM_BYTES.get(each.dtypes[0], 4) if each.dtypes else 4)
    return total
