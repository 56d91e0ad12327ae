"""From a folder to a partition: which kind of partition serves which kind of checkpoint."""

from pathlib import Path

import torch
import transformers

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError

from .causal import load_causal
from .encoder import load_encoder
from .graph import load_graph
from .interface import Partition
from .packed_file import Packed
from .weights import Locate

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}


def load_partition(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    task: str,
    first: int,
    end: int,
    dtype: str = "",
    device: str = "cpu",
    locate: Locate | None = None,
    fast: bool = True,
    before: Packed | None = None,
) -> Partition:
    """Build and load one partition of the checkpoint in `folder`. Blocking: seconds for a large one.

    Args:
        folder: configuration of the whole model.
        checkpoint: what `inspect` found there.
        task: of the model, see `ModelSpec.task`.
        first: first layer.
        end: one past the last layer.
        dtype: safetensors' name to compute in; empty is the checkpoint's own on an accelerator, F32 on a CPU.
        device: a torch device.
        locate: finds the checkpoint's weight files; by default they lie in `folder`.
        fast: use what is faster on this device by measurement (packed weights); off is torch as it is.
        before: what was packed of this very partition before, instead of the weight files; for what cannot use it they
            are read all the same.

    Raises:
        PackedFileError: `before` does not fit.
        CheckpointError: see `prune`, `load_weights` and `load_graph`.
    """
    if task == "tensor":
        if dtype not in ("", checkpoint.dtype):
            raise CheckpointError(f"dtype {dtype!r}: the package was exported in {checkpoint.dtype}")
        return load_graph(folder, first=first, end=end, device=torch.device(device))
    name = dtype or ("F32" if device == "cpu" else checkpoint.dtype)
    if name not in TORCH_DTYPES:
        raise CheckpointError(f"dtype {name!r} cannot be computed in; use one of {', '.join(TORCH_DTYPES)}")
    transformers.utils.logging.disable_progress_bar()
    where = locate or folder.joinpath
    place, kind = torch.device(device), TORCH_DTYPES[name]
    if task == "generate":
        return load_causal(
            folder,
            checkpoint,
            first=first,
            end=end,
            dtype=kind,
            device=place,
            locate=where,
            fast=fast,
            before=before,
        )
    return load_encoder(
        folder,
        checkpoint,
        task=task,
        first=first,
        end=end,
        dtype=kind,
        device=place,
        locate=where,
        fast=fast,
    )
