"""Pieces of a packaged module, which is nobody's language model: tensors in, tensors out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stagemesh.errors import CheckpointError, InternalError, InvalidArgument, StagemeshError
from stagemesh.packaging.arguments import DTYPES
from stagemesh.packaging.load import differs, load_examples, load_pieces
from stagemesh.packaging.manifest import Manifest, Spec, read_manifest
from stagemesh.packaging.program import Program
from stagemesh.tensor import TensorView

from ..tensors import from_view
from .interface import Activations, Batch
from .kv import KVLayout
from .ragged import Segment


class GraphPartition:
    """Pieces `first` to `end` of a package, run one after the other. See `interface.Partition`.

    A row is a sample. The first tensor that crosses a boundary is `hidden`, the others are `sides`; not every one has
    a row for each sample, so a pass is one session's.
    """

    generates = False
    ragged = False
    vocab_size = 0

    def __init__(
        self,
        manifest: Manifest,
        programs: Sequence[Program],
        examples: Mapping[str, torch.Tensor],
        *,
        first: int,
        device: torch.device,
        weight_bytes: int,
    ) -> None:
        self.first_layer, self.end_layer = first, first + len(programs)
        self.is_first = first == 0
        self.is_last = self.end_layer == manifest.layers
        self.device = device
        self.dtype = DTYPES[manifest.dtype]
        self.weight_bytes = weight_bytes
        self.kv_layout = KVLayout(0, 1, 1, self.dtype, device)
        self.default_outputs = tuple(spec.name for spec in manifest.outputs)
        self._manifest = manifest
        self._takes, self._gives = manifest.takes(first), manifest.takes(self.end_layer)
        self._programs = list(programs)
        self._examples = dict(examples)

    def __repr__(self) -> str:
        return f"<GraphPartition {self._manifest.name} {self.first_layer}..{self.end_layer} of {self._manifest.layers}>"

    # ---- what comes in ----

    def inputs_of(self, tensors: Mapping[str, TensorView], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """The inputs as the package names them, of exactly its dtypes and shapes."""
        unknown = sorted(set(tensors) - {spec.name for spec in self._takes})
        if unknown:
            raise InvalidArgument(f"inputs: the model takes no {unknown[0][:40]!r}", field="inputs")
        rows, result = sum(lengths), {}
        for spec in self._takes:
            view = tensors.get(spec.name)
            if view is None:
                raise InvalidArgument(f"inputs: {spec.name} is missing", field=spec.name)
            wanted = (rows if spec.shape[0] == -1 else spec.shape[0], *spec.shape[1:])
            if view.dtype != spec.dtype or view.shape != wanted or wanted[0] != rows or rows < 1:
                raise InvalidArgument(
                    f"{spec.name}: needs {spec.dtype} {list(wanted)}, got {view.dtype} {list(view.shape)}",
                    field=spec.name,
                )
            result[spec.name] = from_view(view, self.device, spec.name)
        return result

    def check(self, rows: int, given: Activations) -> Activations:
        """Every tensor that the piece before gives, and none more."""
        first, *others = self._takes
        if set(given.sides) != {spec.name for spec in others}:
            raise InternalError("a frame's side tensors are not those of the partition before")
        for spec, tensor in ((first, given.hidden), *((spec, given.sides[spec.name]) for spec in others)):
            if tensor.dtype != DTYPES[spec.dtype] or not _fits(spec, tensor):
                raise InternalError(f"a frame's tensor {spec.name!r} is not what the partition before gives")
        return given

    def probe(self, segments: list[Segment]) -> Batch:
        """The package's example, of as many samples as asked for where the batch is dynamic."""
        rows, batch = sum(segment.rows for segment in segments), self._manifest.example_batch
        values = self._examples
        if self._manifest.dynamic and all(
            spec.shape[:1] == (-1,) and spec.example[0] == batch and -1 not in spec.shape[1:]
            for spec in self._takes
        ):
            values = {
                name: torch.cat([value] * -(-rows // batch))[:rows].contiguous()
                for name, value in values.items()
            }
        if self.is_first:
            return Batch(segments, inputs=dict(values))
        return Batch(segments, given=_activations(self._takes, values))

    def example(self) -> Batch:
        """The package's example as it is; whose rows they are does not matter to `forward`."""
        if self.is_first:
            return Batch([], inputs=dict(self._examples))
        return Batch([], given=_activations(self._takes, self._examples))

    # ---- what is computed ----

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Activations:
        """All pieces, one after the other; on the last the outputs, the first of them as `hidden`."""
        if batch.given is not None:
            values = {self._takes[0].name: batch.given.hidden, **batch.given.sides}
        else:
            values = batch.inputs or {}
        for program in self._programs:
            values = program(values)
        return _activations(self._gives, values)

    # ---- what comes out ----

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raises `ValueError`: nothing is sampled from these models."""
        raise ValueError("this model does not generate")

    def output(self, name: str, done: Activations, lengths: Sequence[int]) -> torch.Tensor:
        """One of the package's outputs, `[samples, ...]`, in its own dtype."""
        if self.is_last and name == self._gives[0].name:
            return done.hidden
        if self.is_last and name in done.sides:
            return done.sides[name]
        raise InvalidArgument(f"outputs: the model has no output {name[:40]!r}", field="outputs")


def load_graph(folder: Path, *, first: int, end: int, device: torch.device) -> GraphPartition:
    """Load pieces [first, end) of the package in `folder`, and prove them on its example. Blocking.

    Raises:
        CheckpointError: a file is missing, is not what the manifest was made with, holds an operator that is not
            allowed, or does not compute here what it computed where the package was made.
    """
    manifest = read_manifest(folder)
    if not 0 <= first < end <= manifest.layers:
        raise CheckpointError(f"pieces {first}..{end} of {manifest.layers}", field="source")
    with torch.inference_mode():
        programs, weight_bytes = load_pieces(folder, manifest, first, end, device)
        examples = load_examples(folder, manifest, first, device)
        partition = GraphPartition(
            manifest, programs, examples, first=first, device=device, weight_bytes=weight_bytes
        )
        try:
            done = partition.forward(partition.example())
        except StagemeshError as error:
            raise CheckpointError(f"the package's example fails: {error.message}", field="source") from error
        gives = manifest.takes(end)
        found = {gives[0].name: done.hidden, **done.sides}
        if why := differs(gives, found, load_examples(folder, manifest, end, device)):
            raise CheckpointError(f"the package computes something else here: {why}", field="source")
    return partition


def _activations(specs: Sequence[Spec], values: Mapping[str, torch.Tensor]) -> Activations:
    return Activations(values[specs[0].name], {spec.name: values[spec.name] for spec in specs[1:]})


def _fits(spec: Spec, tensor: torch.Tensor) -> bool:
    return tensor.ndim == len(spec.shape) and all(
        wanted in (-1, size) for wanted, size in zip(spec.shape, tensor.shape, strict=True)
    )
