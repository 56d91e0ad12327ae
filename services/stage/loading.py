"""From an assignment to a partition in memory. Everything here blocks and runs in a thread.

All that loading ever writes is what it fetches from a hub, into the hub's cache.
"""

import errno
import gc
import os
from pathlib import Path

import torch

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import CheckpointError, ResourceExhausted
from stagemesh.malloc import return_free_blocks
from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec
from stagemesh.v1.registry_pb2 import Partition as Layers

from .partition.interface import Partition
from .partition.load import load_partition


def load_assigned(
    spec: ModelSpec, assignment: Assignment, device: str, free_bytes: int, fast: bool
) -> Partition:
    """Load the partition that an assignment names.

    Args:
        spec: desired state of its model.
        assignment: which layers.
        device: a torch device.
        free_bytes: what the node has left for weights and KV.
        fast: see `load_partition`.

    Raises:
        NotFound: the source does not exist on this machine.
        CheckpointError: it cannot be used, or is another revision than the assignment's.
        ResourceExhausted: it does not fit into memory, or what is fetched not on the disk.
    """
    folder = checkpoints.resolve(spec.source, spec.hub_revision)
    found = checkpoints.inspect_source(spec.source, spec.hub_revision)
    # An assignment's revision is `<checkpoint>-<settings>`.
    wanted = assignment.revision.partition("-")[0]
    if found.revision != wanted:
        raise CheckpointError(
            f"the checkpoint on this machine is revision {found.revision[:12]}, wanted {wanted[:12]}"
        )
    first, end = assignment.partition.first_layer, assignment.partition.end_layer
    needed = checkpoints.partition_bytes(found, first, end)
    if needed > free_bytes:
        raise ResourceExhausted(f"layers {first}..{end - 1} need {needed} bytes, {free_bytes} are free")

    def locate(file: str) -> Path:
        if (folder / file).exists() or checkpoints.is_local(spec.source):
            return folder / file
        return _fetched(spec.source, file, folder.name)

    with torch.inference_mode(False):
        return load_partition(
            folder,
            found,
            task=spec.task,
            first=first,
            end=end,
            dtype=spec.dtype,
            device=device,
            locate=locate,
            fast=fast,
        )


def weight_bytes(spec: ModelSpec, partition: Layers, device: str) -> int:
    """What a partition's parameters take in the dtype that they are computed in."""
    stored = ITEM_BYTES.get(spec.checkpoint_dtype, 4)
    computed = spec.dtype or ("F32" if device == "cpu" else spec.checkpoint_dtype)
    return partition.parameter_bytes * ITEM_BYTES.get(computed, stored) // stored


def give_back() -> None:
    """Weights that nobody uses any more leave the heap, which keeps large blocks otherwise."""
    gc.collect()
    return_free_blocks()


def _fetched(source: str, file: str, commit: str) -> Path:
    """A weight file from the hub, or from its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, file, revision=commit))
    except OSError as error:  # the disk's, but also the connection's
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceExhausted(f"{file} cannot be stored: {os.strerror(error.errno)}") from error
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise CheckpointError(f"{file} cannot be fetched: {reason}") from error
    except Exception as error:  # offline, gated, gone: many classes, one meaning
        raise CheckpointError(f"{file} cannot be fetched from the hub ({type(error).__name__})") from error
