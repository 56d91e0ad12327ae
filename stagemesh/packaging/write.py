"""The files of a package."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .arguments import DTYPE_NAMES
from .manifest import EXAMPLES, FORMAT, MANIFEST, VERSION, Spec, revision_of
from .pieces import CutPiece, weights_file


def write_package(
    folder: Path,
    pieces: Sequence[CutPiece],
    outputs: Sequence[Spec],
    *,
    name: str,
    example_batch: int,
    fixed_because: str | None,
) -> None:
    """Write everything, the examples still empty; `fixed_because` is None for a dynamic batch."""
    entries = []
    for index, piece in enumerate(pieces):
        graph = f"piece-{index}.graph.json"
        (folder / graph).write_text(json.dumps(piece.graph.to_json(), allow_nan=False, separators=(",", ":")))
        if piece.tensors:
            save_tensors(folder / weights_file(index), piece.tensors)
        entries.append(
            {
                "graph": graph,
                "weights": weights_file(index) if piece.tensors else "",
                "takes": [asdict(spec) for spec in piece.takes],
                "parameter_bytes": sum(map(_bytes, piece.tensors.values())),
                "borrows": [asdict(borrow) for borrow in piece.borrows],
                "flops": piece.flops,
            }
        )
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "batch": {
            "dynamic": fixed_because is None,
            "fixed_because": fixed_because or "",
            "example": example_batch,
        },
        "dtype": _main_dtype(pieces),
        "inputs": [asdict(spec) for spec in pieces[0].takes],
        "outputs": [asdict(spec) for spec in outputs],
        "pieces": entries,
    }
    save_tensors(folder / EXAMPLES, {})
    seal(folder, raw)


def save_examples(folder: Path, examples: Mapping[str, torch.Tensor]) -> None:
    """Add the example's values at every boundary (see `load.example_name`), and seal the manifest with them."""
    save_tensors(folder / EXAMPLES, examples)
    seal(folder, json.loads((folder / MANIFEST).read_text()))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write safetensors; every tensor gets memory of its own."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def seal(folder: Path, raw: dict[str, Any]) -> None:
    """Write the manifest with sizes and digests of the files that are there, and its revision."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    raw["files"] = files
    raw["revision"] = revision_of(raw)
    (folder / MANIFEST).write_text(json.dumps(raw, indent=1) + "\n")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _main_dtype(pieces: Sequence[CutPiece]) -> str:
    sizes: dict[str, int] = {}
    for piece in pieces:
        for tensor in piece.tensors.values():
            if tensor.dtype in DTYPE_NAMES:
                name = DTYPE_NAMES[tensor.dtype]
                sizes[name] = sizes.get(name, 0) + _bytes(tensor)
    return max(sorted(sizes), key=lambda name: sizes[name]) if sizes else "F32"
