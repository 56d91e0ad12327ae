"""One piece of a package on a device."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stagemesh.checkpoint_files import read_header, read_json
from stagemesh.errors import CheckpointError

from .arguments import DTYPE_NAMES
from .graph_form import Graph, parse_graph
from .manifest import EXAMPLES, Manifest, Spec
from .program import Program


def load_pieces(
    folder: Path, manifest: Manifest, first: int, end: int, device: torch.device
) -> tuple[list[Program], int]:
    """Load pieces [first, end); return them with the bytes of their weights. Shared tensors are loaded once.

    Raises:
        CheckpointError: naming the file and the field, when anything is not as the manifest says, or an operator
            is not allowed.
    """
    loaded: dict[tuple[str, str], torch.Tensor] = {}
    programs = []
    for index in range(first, end):
        piece = manifest.pieces[index]
        check_digest(folder, manifest, piece.graph)
        if piece.weights:
            check_digest(folder, manifest, piece.weights)
        graph = parse_graph(read_json(folder, piece.graph), piece.graph)
        _check_boundaries(graph, manifest, index)
        wanted = {(weight.file, weight.tensor) for weight in graph.weights.values()}
        allowed = {(borrow.file, borrow.tensor) for borrow in piece.borrows}
        for file, tensor in sorted(wanted - loaded.keys()):
            if file != piece.weights and (file, tensor) not in allowed:
                raise CheckpointError(
                    f"{piece.graph}: weights: {file!r} is neither its own nor borrowed", field="source"
                )
        for file in sorted({file for file, _ in wanted - loaded.keys()}):
            names = [tensor for found, tensor in sorted(wanted - loaded.keys()) if found == file]
            for name, tensor in read_tensors(folder, file, names, device).items():
                loaded[file, name] = tensor
        weights = {value: loaded[weight.file, weight.tensor] for value, weight in graph.weights.items()}
        try:
            programs.append(Program(graph, weights, device))
        except CheckpointError as error:
            raise CheckpointError(f"{piece.graph}: {error.message}", field="source") from error
    return programs, sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())


def _check_boundaries(graph: Graph, manifest: Manifest, index: int) -> None:
    """A piece must take and give exactly what the manifest says crosses its boundaries."""
    file = manifest.pieces[index].graph
    for key, names, at in (("takes", graph.takes, index), ("gives", graph.gives, index + 1)):
        if list(names) != [spec.name for spec in manifest.takes(at)]:
            raise CheckpointError(f"{file}: {key}: is not what the manifest says", field="source")


def read_tensors(folder: Path, file: str, names: list[str], device: torch.device) -> dict[str, torch.Tensor]:
    """Some tensors of a safetensors file, whose header is checked first."""
    header = read_header(folder / file)
    missing = [name for name in names if name not in header]
    if missing:
        raise CheckpointError(f"{file} lacks {missing[0][:120]!r}", field="source")
    try:
        with safe_open(folder / file, framework="pt", device=str(device)) as tensors:
            return {name: tensors.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error)[:200]}", field="source") from error


def check_digest(folder: Path, manifest: Manifest, name: str) -> None:
    """Raise `CheckpointError` when a file is not the one that the manifest was made with."""
    size, wanted = manifest.files[name]
    try:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            length = file.tell()
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}", field="source") from None
    if found != wanted or length != size:
        raise CheckpointError(f"{name} is not what the manifest was made with (sha256)", field="source")


def example_name(index: int, name: str) -> str:
    """Where the examples file has a tensor that crosses into piece `index` (one past the last: an output)."""
    return f"{index}/{name}"


def load_examples(
    folder: Path, manifest: Manifest, index: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """What crossed into piece `index` when the example ran.

    Raises:
        CheckpointError: a tensor is missing or is not of the manifest's dtype and shape.
    """
    check_digest(folder, manifest, EXAMPLES)
    specs = manifest.takes(index)
    found = read_tensors(folder, EXAMPLES, [example_name(index, spec.name) for spec in specs], device)
    examples = {spec.name: found[example_name(index, spec.name)] for spec in specs}
    for spec in specs:
        tensor = examples[spec.name]
        if DTYPE_NAMES[tensor.dtype] != spec.dtype or tuple(tensor.shape) != spec.example:
            raise CheckpointError(f"{EXAMPLES}: {spec.name!r} is not as in the manifest", field="source")
    return examples


def differs(
    specs: tuple[Spec, ...], found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> str:
    """The first tensor that is not what the example gave, with the difference; empty when all are.

    Another kind of device sums in another order, so floats may differ by a part in a thousand of the largest (in
    half precision a twentieth); integers only have to have the shape.
    """
    for spec in specs:
        one, other = found[spec.name], wanted[spec.name]
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{spec.name!r} is {one.dtype} {list(one.shape)}, not {other.dtype} {list(other.shape)}"
        if not one.is_floating_point() or not one.numel():
            continue
        allowed = (0.05 if one.dtype in (torch.float16, torch.bfloat16) else 1e-3) * max(
            1.0, float(other.nan_to_num(0, 0, 0).abs().max())
        )
        same = torch.isclose(one.double(), other.double(), rtol=0, atol=allowed, equal_nan=True)
        if not bool(same.all()):
            return f"{spec.name!r} differs by {float((one.double() - other.double()).abs().max()):.3g}"
    return ""
