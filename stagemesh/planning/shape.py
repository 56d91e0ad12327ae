"""A model as the planner sees it: bytes per layer, where it may be cut, what crosses a cut. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from stagemesh.checkpoint import Checkpoint

__all__ = ["ITEM_BYTES", "ModelShape"]

ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class ModelShape:
    """Byte counts are of the dtype stored in the checkpoint. See `stagemesh.checkpoint.Checkpoint`."""

    name: str
    layer_bytes: Sequence[int]
    embedding_bytes: int = 0
    head_bytes: int = 0
    # Of the embedding, where the output head is tied to it: a last partition that is not the first holds it again.
    tied_bytes: int = 0
    # How many layers may lie before a cut; None is any number.
    cuts: Sequence[int] | None = None
    # Values in what a token hands to the next stage.
    hidden_size: int = 0
    stored_dtype: str = "F32"
    # dtype to compute in; empty is the stored one (F32 for F16 and BF16 on a CPU).
    dtype: str = ""

    @staticmethod
    def of(checkpoint: Checkpoint, name: str, dtype: str = "") -> "ModelShape":
        """The shape of a checkpoint that is computed in `dtype`."""
        return ModelShape(
            name=name,
            layer_bytes=checkpoint.layer_bytes,
            embedding_bytes=checkpoint.embedding_bytes,
            head_bytes=checkpoint.head_bytes,
            tied_bytes=checkpoint.tied_bytes,
            cuts=checkpoint.cuts,
            hidden_size=checkpoint.hidden_size,
            stored_dtype=checkpoint.dtype,
            dtype=dtype,
        )

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.layer_bytes)

    @property
    def mean_layer_bytes(self) -> float:
        """Of one layer, as stored."""
        return sum(self.layer_bytes) / self.layers

    def ends(self) -> list[int]:
        """Layers before each place where the model may be cut, with 0 and `layers`; between two lies a piece."""
        allowed = range(1, self.layers) if self.cuts is None else sorted(set(self.cuts))
        return [0, *(cut for cut in allowed if 0 < cut < self.layers), self.layers]

    def held_bytes(self, first: int, end: int) -> int:
        """Parameters of the partition with layers [first, end), as stored."""
        before = self.before()
        size = before[end] - before[first]
        if first == 0:
            size += self.embedding_bytes
        if end == self.layers:
            size += self.head_bytes + (self.tied_bytes if first > 0 else 0)
        return size

    def read_bytes(self, first: int, end: int) -> int:
        """Parameters that a pass of that partition multiplies with: a token embedding is looked up, not read."""
        before = self.before()
        return before[end] - before[first] + (self.head_bytes + self.tied_bytes if end == self.layers else 0)

    def computed_bytes(self, device: str) -> float:
        """Bytes in memory on a device ("cpu", "cuda") for each byte stored."""
        return self.item_bytes(device) / ITEM_BYTES.get(self.stored_dtype, 4)

    def item_bytes(self, device: str) -> int:
        """Bytes of one value as computed on the device."""
        own = self.stored_dtype if self.stored_dtype in ITEM_BYTES else "F32"
        computed = self.dtype or ("F32" if device == "cpu" and own in ("F16", "BF16") else own)
        return ITEM_BYTES.get(computed, 4)

    def before(self) -> list[int]:
        """Bytes of the layers before each layer, and of all."""
        return [0, *accumulate(self.layer_bytes)]
