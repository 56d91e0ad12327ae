"""Fill a skeleton with its own tensors, mapped from safetensors files, and nothing else.

Checkpoints do not always spell a tensor as the model does: experts lie apart that the model holds as one tensor, or a
module was renamed. The model library knows how each family was written (`get_model_conversion_mapping`), and does the
merging and renaming here too; what this file adds is that only files and tensors of this partition are touched.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError

from .skeleton import Absent, Skeleton

_STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}

# Where a file of the checkpoint lies on this machine; fetches it first when it must.
Locate = Callable[[str], Path]


def load_weights(
    skeleton: Skeleton, checkpoint: Checkpoint, locate: Locate, device: torch.device, *, mapped: bool = False
) -> int:
    """Load every parameter and buffer of the skeleton in its own dtype; return the bytes that they take.

    Only files that hold one of its tensors are located, and only its tensors are read from them.

    Args:
        skeleton: on the meta device; is filled.
        checkpoint: what it is filled from.
        locate: finds its files.
        device: where to.
        mapped: leave on a CPU what the file has as it is needed in the mapped file, for somebody who makes something else
            of it at once; `own_memory` copies what is left then.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or its file cannot be read.
    """
    model = skeleton.model
    mapping = get_model_conversion_mapping(model)
    sources = _sources(model, checkpoint.tensors, mapping)
    present = set(model.state_dict())
    wanted = {name: target for name, target in sources.items() if target in present}
    # What is tied to a tensor of another partition is read under its own name.
    given = set(sources.values())
    for target, other in skeleton.tied.items():
        if target in present and target not in given and other not in present:
            wanted.update({name: target for name, found in sources.items() if found == other})
    missing, wrong = _load(model, checkpoint, locate, wanted, sources, mapping, device)
    skeleton.mapped = _mapped(model, checkpoint, wanted)
    if not mapped:
        own_memory(skeleton)
    for target, other in skeleton.tied.items():
        if target in present and other in present:
            # Either spelling may be the one that the checkpoint has.
            one, like = (other, target) if other in missing else (target, other)
            _share(model, one, like)
            if not {target, other} <= missing:
                missing -= {target, other}
    if wrong:
        name, found, needed = wrong[0]
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found)}, the architecture needs {list(needed)}"
        )
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors, first {min(missing)!r}")
    fill_buffers(model, device)
    model.requires_grad_(False)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in tensors if tensor.is_meta]
    if left:
        raise CheckpointError(f"architecture leaves {left[0]!r} without a value: it cannot be split here")
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def _sources(model: PreTrainedModel, names: Iterable[str], mapping: list[Any]) -> dict[str, str]:
    """The model's parameter (one of them, where a tensor is taken apart) that each tensor of a checkpoint goes to."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for name in names:
        target, _ = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target = name
        found[name] = target
    return found


def _load(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    locate: Locate,
    wanted: dict[str, str],
    sources: dict[str, str],
    mapping: list[Any],
    device: torch.device,
) -> tuple[set[str], list[tuple[str, torch.Size, torch.Size]]]:
    """Read the tensors in `wanted`; parameters that got none, and those whose shape does not fit."""
    by_file: dict[str, list[str]] = {}
    for name in wanted:
        by_file.setdefault(checkpoint.tensors[name].file, []).append(name)
    with ExitStack() as files:
        state: dict[str, Any] = {}
        for file, names in by_file.items():
            try:
                opened = files.enter_context(safe_open(locate(file), framework="pt"))
                for name in names:
                    # Under the checkpoint's name, for the mapping; tied ones under the model's.
                    key = name if sources[name] == wanted[name] else wanted[name]
                    state[key] = opened.get_slice(name)
            except SafetensorError as error:
                raise CheckpointError(f"{file} cannot be read: {str(error)[:200]}") from error
            except OSError as error:  # whose text has the path
                raise CheckpointError(
                    f"{file} cannot be read: {error.strerror or 'it is not there'}"
                ) from error
        config = LoadStateDictConfig(device_map={"": device}, weight_mapping=mapping)
        info, _ = convert_and_load_state_dict_in_model(model, state, config)
    if info.conversion_errors:
        first = next(iter(info.conversion_errors.values()))
        raise CheckpointError(f"the checkpoint's tensors cannot be converted: {str(first)[:200]}")
    return set(info.missing_keys), list(info.mismatched_keys)


def own_memory(skeleton: Skeleton) -> None:
    """Copy what still lies in a mapped file: a checkpoint may be replaced while it is served."""
    for tensor in [*skeleton.model.parameters(), *skeleton.model.buffers()]:
        if tensor.data_ptr() in skeleton.mapped:
            tensor.data = tensor.data.clone()
    skeleton.mapped.clear()


def _mapped(model: PreTrainedModel, checkpoint: Checkpoint, wanted: dict[str, str]) -> set[int]:
    """Where the tensors begin that may lie in a file's mapping: those that are as the file has them."""
    found = set()
    for name, target in wanted.items():
        tensor = _tensor(model, target)
        same = _STORED.get(checkpoint.tensors[name].dtype) == tensor.dtype
        if same and not tensor.is_meta and tensor.device.type == "cpu":
            found.add(tensor.data_ptr())
    return found


def _share(model: PreTrainedModel, target: str, other: str) -> None:
    """Make `target` the parameter that `other` is."""
    owner, _, leaf = target.rpartition(".")
    setattr(model.get_submodule(owner), leaf, _tensor(model, other))


def _tensor(model: PreTrainedModel, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies, position ids)."""
    owners: dict[str, PreTrainedModel] = {}
    for path, module in model.named_modules():
        # The innermost model that a module belongs to knows what its buffers are.
        owner = owners.get(path.rpartition(".")[0], model)
        owners[path] = owner = module if isinstance(module, PreTrainedModel) else owner
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in empty:
            setattr(module, name, torch.zeros_like(getattr(module, name), device=device))
        if empty and not isinstance(module, Absent):
            with torch.no_grad():
                owner._init_weights(module)
