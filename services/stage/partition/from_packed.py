"""A partition's content as a packed file has it, and back into a skeleton.

Two kinds of tensors: the panels of packed linear layers, under the layer's name after fusing, and everything else (norms,
embeddings, small layers), under the checkpoint's model's own name, so that it is there before layers are fused.
"""

from typing import Any

import torch
from torch import nn

from .kernels import PANEL, Kernels
from .packed import PanelLinear
from .packed_file import Packed, PackedFileError
from .skeleton import Skeleton
from .weights import fill_buffers

_PANELS, _BIAS, _PLAIN = "panels/", "bias/", "plain/"


def named(skeleton: Skeleton) -> dict[str, torch.Tensor]:
    """Parameters and stored buffers under the names that they have before layers are dropped and fused."""
    kept = set(skeleton.model.state_dict())
    every = [
        *skeleton.model.named_parameters(remove_duplicate=False),
        *skeleton.model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor for name, tensor in every if name in kept}


def contents(
    skeleton: Skeleton, names: dict[str, torch.Tensor], *, weight_bytes: int, fused: bool
) -> Packed | None:
    """What to write of a loaded partition, without a copy; None when it has something that would not be found again.

    Args:
        skeleton: packed.
        names: see `named`, of before it was packed.
        weight_bytes: as the partition has it.
        fused: its layers were.
    """
    packed = Packed(facts={"weight_bytes": weight_bytes, "fused": fused, "panels": {}, "same": {}})
    accounted: set[int] = set()
    for path, module in skeleton.model.named_modules():
        if isinstance(module, PanelLinear):
            packed.tensors[_PANELS + path] = module.panels
            packed.facts["panels"][path] = [module.in_features, module.out_features]
            if module.bias is not None:
                packed.tensors[_BIAS + path] = module.bias
                accounted.add(id(module.bias))
    used = {id(tensor) for tensor in [*skeleton.model.parameters(), *skeleton.model.buffers()]}
    first: dict[int, str] = {}
    for name, tensor in names.items():
        if id(tensor) not in used:
            continue
        if id(tensor) in first:
            packed.facts["same"][name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            packed.tensors[_PLAIN + name] = tensor
    if {id(tensor) for tensor in skeleton.model.parameters()} - first.keys() - accounted:
        return None
    return packed if packed.facts["panels"] else None


def fill(skeleton: Skeleton, packed: Packed, device: torch.device) -> int:
    """Give a skeleton on the meta device everything but its packed layers; return the partition's `weight_bytes`.

    Raises:
        PackedFileError: it is another model's.
    """
    model, names = skeleton.model, named(skeleton)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in packed.tensors.items():
        if name.startswith(_PLAIN):
            found[name.removeprefix(_PLAIN)] = nn.Parameter(tensor, requires_grad=False)
    same: dict[str, str] = _fact(packed, "same", dict)
    found |= {name: found[other] for name, other in same.items() if other in found}
    for name, given in found.items():
        like = names.get(name)
        if like is None or like.shape != given.shape or like.dtype != given.dtype:
            raise PackedFileError(f"the model has no such tensor {name!r}")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, given if isinstance(like, nn.Parameter) else given.data)
    fill_buffers(model, device)
    model.requires_grad_(False)
    return int(_fact(packed, "weight_bytes", int))


def is_fused(packed: Packed) -> bool:
    """Whether its layers were fused."""
    return bool(_fact(packed, "fused", bool))


def place(skeleton: Skeleton, packed: Packed, kernels: Kernels) -> int:
    """Put the packed layers into a skeleton whose layers are fused as those of the file; return how many.

    Raises:
        PackedFileError: it is another model's, or lacks something.
    """
    model, panels = skeleton.model, _fact(packed, "panels", dict)
    for path, sizes in panels.items():
        try:
            plain: Any = model.get_submodule(path)
            weight, bias = packed.tensors[_PANELS + path], packed.tensors.get(_BIAS + path)
            depth, columns = int(sizes[0]), int(sizes[1])
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise PackedFileError(f"the model has no such layer {path!r}") from error
        fits = (plain.in_features, plain.out_features) == (depth, columns)
        if (
            not fits
            or weight.shape != (-(-columns // PANEL) * PANEL * depth,)
            or weight.dtype != kernels.dtype
        ):
            raise PackedFileError(f"layer {path!r} has another shape")
        model.set_submodule(path, PanelLinear.of(depth, columns, weight, bias, kernels), strict=True)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise PackedFileError(f"it lacks {left[0]!r}")
    return len(panels)


def _fact(packed: Packed, name: str, kind: type) -> Any:
    found = packed.facts.get(name)
    if not isinstance(found, kind):
        raise PackedFileError(f"its {name} is missing")
    return found
