"""From an assignment to a partition in memory. Everything here blocks and runs in a thread.

All that loading ever writes is what it fetches from a hub, into the hub's cache; packed partitions are written later, see
`warm/saving.py`.
"""

import errno
import gc
import os
from functools import partial
from pathlib import Path

import torch

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import CheckpointError, ResourceExhausted
from stagemesh.malloc import return_free_blocks
from stagemesh.revisions import spec_of
from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec
from stagemesh.v1.registry_pb2 import Partition as Layers

from .config import StageConfig
from .partition.interface import Partition
from .partition.load import TORCH_DTYPES, load_partition
from .partition.packed_file import PackedFileError
from .warm.packed_store import PackedStore

# Positions that a session is expected to take where the model sets no limit.
UNKNOWN_CONTEXT = 8192


def load_assigned(
    spec: ModelSpec,
    assignment: Assignment,
    device: str,
    free_bytes: int,
    fast: bool,
    store: PackedStore | None = None,
) -> Partition:
    """Load the partition that an assignment names.

    Args:
        spec: desired state of its model.
        assignment: which layers.
        device: a torch device.
        free_bytes: what the node has left for weights and KV.
        fast: see `load_partition`.
        store: where it may lie packed; on a CPU alone.

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

    load = partial(
        load_partition,
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
    with torch.inference_mode(False):
        if store is None or device != "cpu" or not fast or spec.task != "generate":
            return load()
        key = store.key_of(spec, assignment, found, folder)
        before = store.find(key, TORCH_DTYPES.get(spec.dtype or "F32", torch.float32))
        if before is not None:
            try:
                return load(before=before)
            except PackedFileError as error:
                store.refuse(key, error.message)
        partition = load()
        store.note(key, partition)
        return partition


def weight_bytes(spec: ModelSpec, partition: Layers, device: str) -> int:
    """What a partition's parameters take in the dtype that they are computed in."""
    stored = ITEM_BYTES.get(spec.checkpoint_dtype, 4)
    computed = spec.dtype or ("F32" if device == "cpu" else spec.checkpoint_dtype)
    return partition.parameter_bytes * ITEM_BYTES.get(computed, stored) // stored


def kv_budget(config: StageConfig, model: Partition, spec: ModelSpec, left: int) -> int:
    """Bytes for KV: what a full house of longest sessions needs, within the share of the `left` ones that may be taken."""
    wanted = (
        config.max_sessions * model.kv_layout.sequence_bytes(spec.context_length or UNKNOWN_CONTEXT)
        if model.generates
        else 0
    )
    return min(wanted, int(left * config.kv_fraction))


def wanted_spec(model: ModelSpec, assignment: Assignment) -> ModelSpec:
    """The spec of the assignment's revision: the deployed one, or the candidate of a rollout.

    Raises:
        CheckpointError: it is neither.
    """
    spec = spec_of(model, assignment.revision)
    if spec is None:
        raise CheckpointError("its revision is not wanted any more")
    return spec


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
