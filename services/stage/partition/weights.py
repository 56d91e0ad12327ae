"""Fill a skeleton with its own tensors, mapped from safetensors files, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError

from .skeleton import Skeleton

# Where a file of the checkpoint lies on this machine; fetches it first when it must.
Locate = Callable[[str], Path]


def load_weights(
    skeleton: Skeleton, checkpoint: Checkpoint, locate: Locate, dtype: torch.dtype, device: torch.device
) -> int:
    """Load every parameter and buffer of the skeleton; return the bytes that they take.

    Only files that hold one of its tensors are located, and only its tensors are read from them.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or its file cannot be read.
    """
    model = skeleton.model
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta}
    tied = _tied(skeleton)
    source = {
        name: _name_in(checkpoint, _original(name, skeleton), model.base_model_prefix) for name in wanted
    }
    missing = sorted(name for name, found in source.items() if found is None and name not in tied)
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors, first {missing[0]!r}")

    loaded = 0
    by_file: dict[str, list[str]] = {}
    for name, found in source.items():
        if found is not None:
            by_file.setdefault(checkpoint.tensors[found].file, []).append(name)
    for file, names in by_file.items():
        try:
            with safe_open(locate(file), framework="pt") as tensors:
                for name in names:
                    loaded += _place(skeleton, name, tensors.get_tensor(source[name]), dtype, device)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {str(error)[:200]}") from error
    for name, other in tied.items():
        if source.get(name) is None:
            loaded += _place_tied(skeleton, checkpoint, locate, name, other, dtype, device)
    _fill_buffers(skeleton, device)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise CheckpointError(f"architecture leaves {left[0]!r} without a value: it cannot be split here")
    return loaded


def _original(name: str, skeleton: Skeleton) -> str:
    """The name that a parameter has in the whole model: layers of a partition count from 0."""
    for local, whole in skeleton.renamed.items():
        if name.startswith(local):
            return whole + name[len(local) :]
    return name


def _name_in(checkpoint: Checkpoint, name: str, prefix: str) -> str | None:
    """The checkpoint's spelling: with or without the base model's prefix."""
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in checkpoint.tensors:
            return candidate
    return None


def _tied(skeleton: Skeleton) -> dict[str, str]:
    """Parameters that share another's values in the whole model: name -> the other's name."""
    model = skeleton.model
    if skeleton.head is None or not getattr(model.config, "tie_word_embeddings", False):
        return {}
    head = next(name for name, module in model.named_modules() if module is skeleton.head)
    embedding = f"{model.base_model_prefix}.{skeleton.plan.before[0]}" if skeleton.plan.before else ""
    return {f"{head}.weight": f"{embedding}.weight"}


def _place(
    skeleton: Skeleton, name: str, value: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> int:
    """Put `value` in the place of a meta tensor; return its bytes."""
    owner_name, _, leaf = name.rpartition(".")
    owner = skeleton.model.get_submodule(owner_name)
    current = getattr(owner, leaf)
    if value.shape != current.shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(value.shape)}, the architecture needs {list(current.shape)}"
        )
    # A copy, so that nothing holds the mapped file: a checkpoint may be replaced while it is served.
    value = value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype, copy=True)
    if isinstance(current, torch.nn.Parameter):
        value = torch.nn.Parameter(value, requires_grad=False)
        value._is_hf_initialized = True  # transformers' initialisers leave such tensors alone
    setattr(owner, leaf, value)
    return value.nbytes


def _place_tied(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    locate: Locate,
    name: str,
    other: str,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Give `name` the values of `other`: shared when this partition has it, else read."""
    model = skeleton.model
    try:
        shared = model.get_parameter(other)
    except AttributeError:
        found = _name_in(checkpoint, other, model.base_model_prefix)
        if found is None:
            raise CheckpointError(f"the checkpoint lacks the tensor {other!r}") from None
        with safe_open(locate(checkpoint.tensors[found].file), framework="pt") as tensors:
            return _place(skeleton, name, tensors.get_tensor(found), dtype, device)
    owner_name, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner_name), leaf, shared)
    return 0


def _fill_buffers(skeleton: Skeleton, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies, position ids)."""
    for module in skeleton.model.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in empty:
            setattr(module, name, torch.zeros_like(getattr(module, name), device=device))
        if empty:
            with torch.no_grad():
                skeleton.model._init_weights(module)
