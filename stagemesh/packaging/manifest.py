"""`manifest.json` of a package: what goes in, what comes out, and the pieces. Reads no weights, needs no torch."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagemesh.checkpoint_files import read_json
from stagemesh.errors import CheckpointError
from stagemesh.signature import Signature, Tensor
from stagemesh.tensor import ITEM_BYTES, MAX_ELEMENTS, MAX_RANK

from .fields import Fields

MANIFEST, FORMAT, VERSION = "manifest.json", "stagemesh.package", 1
EXAMPLES = "examples.safetensors"
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
LONGEST_NAME = 128
MAX_PIECES, MAX_TENSORS = 1024, 4096
_GRAPH, _WEIGHTS = r"piece-\d{1,4}\.graph\.json", r"piece-\d{1,4}\.safetensors"
_SIZE = 2**62


@dataclass(frozen=True)
class Spec:
    """A tensor that goes in, comes out, or crosses a boundary between two pieces.

    Attributes:
        name: unique among its neighbours.
        dtype: safetensors' name.
        shape: -1 where the size follows the batch.
        example: the shape at the example's batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class Borrow:
    """A tensor that a piece shares with an earlier one, in whose file it lies."""

    file: str
    tensor: str
    bytes: int


@dataclass(frozen=True)
class Piece:
    """The finest part that can be placed on its own.

    Attributes:
        graph: file with its operations.
        weights: file with its tensors, or "" when it has none.
        takes: the inputs for the first piece, else what the piece before gives.
        parameter_bytes: of its own file's tensors.
        borrows: tensors of earlier pieces that it needs too.
        flops: floating point operations at the example's batch.
    """

    graph: str
    weights: str
    takes: tuple[Spec, ...]
    parameter_bytes: int
    borrows: tuple[Borrow, ...]
    flops: int


@dataclass(frozen=True)
class Manifest:
    """A package.

    Attributes:
        name: given when it was made.
        revision: hex digest of everything in it.
        dynamic: any batch size may be sent, and its samples do not depend on one another. Otherwise the
            example's batch is the only one. Every input and output has the batch first.
        fixed_because: why it is not dynamic, in one line.
        example_batch: samples in the example.
        dtype: that most parameter bytes have.
        inputs, outputs: in the module's order.
        pieces: in the order they run.
        files: size in bytes and SHA-256 of each file but the manifest.
    """

    name: str
    revision: str
    dynamic: bool
    fixed_because: str
    example_batch: int
    dtype: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    pieces: tuple[Piece, ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def layers(self) -> int:
        """How many pieces there are: a partition is some that follow one another."""
        return len(self.pieces)

    @property
    def layer_bytes(self) -> list[int]:
        """What each piece would take alone."""
        return [self.partition_bytes(index, index + 1) for index in range(self.layers)]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the desired state describes them."""
        inputs, outputs = (
            tuple(Tensor(spec.name, (spec.dtype,), spec.shape) for spec in specs)
            for specs in (self.inputs, self.outputs)
        )
        return Signature(inputs, outputs, "sample")

    def takes(self, index: int) -> tuple[Spec, ...]:
        """What crosses into piece `index`; for one past the last, the outputs."""
        return self.pieces[index].takes if index < self.layers else self.outputs

    def partition_bytes(self, first: int, end: int) -> int:
        """Parameter bytes of pieces [first, end), what they share counted once."""
        if not 0 <= first < end <= self.layers:
            raise ValueError(f"pieces {first}..{end} of {self.layers}")
        chosen = self.pieces[first:end]
        own = {piece.weights for piece in chosen}
        borrowed = {
            (b.file, b.tensor): b.bytes for piece in chosen for b in piece.borrows if b.file not in own
        }
        return sum(piece.parameter_bytes for piece in chosen) + sum(borrowed.values())


def is_package(folder: Path) -> bool:
    """Whether the folder holds a package rather than a checkpoint."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read and check a package's manifest, and that all of its files are there with their sizes.

    Raises:
        CheckpointError: naming the file and the field.
    """
    raw = read_json(folder, MANIFEST)
    manifest = parse_manifest(raw)
    for name, (size, _) in manifest.files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            raise CheckpointError(f"the package lacks {name}", field="source") from None
        if found != size:
            raise CheckpointError(f"{name} has {found} bytes, {MANIFEST} says {size}", field="source")
    return manifest


def parse_manifest(raw: Mapping[str, Any]) -> Manifest:
    """Check a manifest's JSON. Raises `CheckpointError` naming the field."""
    top = Fields(raw, MANIFEST)
    if raw.get("format") != FORMAT:
        raise top.wrong("format", f"must be {FORMAT!r}")
    if raw.get("version") != VERSION:
        raise top.wrong("version", f"this stagemesh reads version {VERSION}")
    files = {name: _file(top, name, entry) for name, entry in top.table("files", 2 * MAX_PIECES + 1).items()}
    batch = top.at("batch", raw.get("batch"))
    dynamic, example_batch = batch.flag("dynamic"), batch.integer("example", 1, 2**31)
    pieces = tuple(
        _piece(piece, index, files) for index, piece in enumerate(top.objects("pieces", MAX_PIECES))
    )
    if not pieces:
        raise top.wrong("pieces", "must not be empty")
    _check_borrows(top, pieces)
    inputs, outputs = _specs(top, "inputs"), _specs(top, "outputs")
    if pieces[0].takes != inputs:
        raise top.wrong("pieces[0].takes", "must be the inputs")
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        for index, spec in enumerate(specs):
            if spec.shape[:1] != (-1 if dynamic else example_batch,):
                raise top.wrong(f"{kind}[{index}].shape", "must have the batch first")
            if any(size < 1 for size in spec.shape[1:]):
                raise top.wrong(f"{kind}[{index}].shape", "must have positive sizes after the batch")
    if EXAMPLES not in files:
        raise top.wrong("files", f"must have {EXAMPLES}")
    manifest = Manifest(
        name=top.text("name", NAME, LONGEST_NAME),
        revision=top.text("revision", "[0-9a-f]{32}"),
        dynamic=dynamic,
        fixed_because=batch.free_text("fixed_because", 1000),
        example_batch=example_batch,
        dtype=_dtype(top, "dtype"),
        inputs=inputs,
        outputs=outputs,
        pieces=pieces,
        files=files,
    )
    if revision_of(raw) != manifest.revision:
        raise top.wrong("revision", "is not that of the manifest's content")
    return manifest


def revision_of(raw: Mapping[str, Any]) -> str:
    """Digest of a manifest's JSON, which holds the digests of all files, apart from `revision` itself."""
    content = {key: value for key, value in raw.items() if key != "revision"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _file(top: Fields, name: str, entry: object) -> tuple[int, str]:
    fields = top.at(f"files.{name[:40]}", entry)
    if not re.fullmatch(f"{_GRAPH}|{_WEIGHTS}|{re.escape(EXAMPLES)}", name):
        raise fields.wrong("", "is no file of a package")
    return fields.integer("bytes", 0, _SIZE), fields.text("sha256", "[0-9a-f]{64}")


def _piece(fields: Fields, index: int, files: Mapping[str, object]) -> Piece:
    graph, weights = fields.text("graph", _GRAPH), fields.text("weights", f"({_WEIGHTS})?")
    if graph not in files:
        raise fields.wrong("graph", "is not among the files")
    if weights and weights not in files:
        raise fields.wrong("weights", "is not among the files")
    borrows = tuple(
        Borrow(
            entry.text("file", _WEIGHTS),
            entry.free_text("tensor", 512),
            entry.integer("bytes", 0, _SIZE),
        )
        for entry in fields.objects("borrows", MAX_TENSORS)
    )
    return Piece(
        graph=graph,
        weights=weights,
        takes=_specs(fields, "takes"),
        parameter_bytes=fields.integer("parameter_bytes", 0, _SIZE),
        borrows=borrows,
        flops=fields.integer("flops", 0, _SIZE),
    )


def _check_borrows(top: Fields, pieces: tuple[Piece, ...]) -> None:
    graphs = [piece.graph for piece in pieces]
    weights = [piece.weights for piece in pieces if piece.weights]
    if len(set(graphs)) < len(graphs) or len(set(weights)) < len(weights):
        raise top.wrong("pieces", "two of them have the same file")
    seen: set[str] = set()
    for index, piece in enumerate(pieces):
        if any(borrow.file not in seen for borrow in piece.borrows):
            raise top.wrong(f"pieces[{index}].borrows", "names a file that is not an earlier piece's")
        seen.add(piece.weights)


def _specs(fields: Fields, key: str) -> tuple[Spec, ...]:
    specs = tuple(_spec(entry) for entry in fields.objects(key, MAX_TENSORS))
    if not specs:
        raise fields.wrong(key, "must not be empty")
    if len({spec.name for spec in specs}) < len(specs):
        raise fields.wrong(key, "names must differ")
    return specs


def _spec(fields: Fields) -> Spec:
    shape = fields.integers("shape", -1, MAX_ELEMENTS, MAX_RANK)
    example = fields.integers("example", 0, MAX_ELEMENTS, MAX_RANK)
    if len(example) != len(shape) or any(
        size not in (-1, at) for size, at in zip(shape, example, strict=True)
    ):
        raise fields.wrong("example", "does not fit the shape")
    if math.prod(example) > MAX_ELEMENTS:
        raise fields.wrong("example", "has too many elements")
    return Spec(fields.text("name", NAME, LONGEST_NAME), _dtype(fields, "dtype"), shape, example)


def _dtype(fields: Fields, key: str) -> str:
    name = fields.free_text(key, 16)
    if name not in ITEM_BYTES:
        raise fields.wrong(key, f"must be one of {', '.join(ITEM_BYTES)}")
    return name
