"""The part of a transformers model that one partition runs: a skeleton on the meta device.

The whole model is built without memory, what belongs to other partitions is replaced by modules that pass on what
they are given, and the model's own forward runs on what is left. What is where says the plan that the model library
publishes (`base_model_pp_plan`), or `plans.py` for families without one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from stagemesh.errors import CheckpointError

from .plans import Plan


class Absent(nn.Module):
    """Stands where a module of another partition was, and passes on what it is given first."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument that is not None."""
        return next((value for value in (*args, *kwargs.values()) if value is not None), None)


class Nothing(Absent):
    """Stands where a module of another partition gave something to be added, and adds nothing."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Zero."""
        return torch.zeros(())


@dataclass(slots=True)
class Skeleton:
    """A pruned model on the meta device.

    Attributes:
        model: the model with its head.
        base: what is inside of it: embeddings, layers, final norm.
        plan: how it was cut.
        first: first layer that is kept.
        end: one past the last.
        total: layers of the whole model.
        tied: parameters that have another's values in the whole model: name -> the other's name.
        mapped: addresses of tensors that lie in a mapped file; see `weights.own_memory`.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    plan: Plan
    first: int
    end: int
    total: int
    tied: dict[str, str] = field(default_factory=dict)
    mapped: set[int] = field(default_factory=set)

    @property
    def layers(self) -> nn.ModuleList:
        """The partition's layers, after `compact`; before it the whole model's, with absent ones."""
        found = self.base.get_submodule(self.plan.layers)
        assert isinstance(found, nn.ModuleList)
        return found


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the checkpoint's configuration.

    Raises:
        CheckpointError: it is missing, or of a model type that the installed transformers does not know.
    """
    try:
        given, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        if given.get("model_type") not in CONFIG_MAPPING:
            name, kind = (given.get("architectures") or [""])[0], given.get("model_type")
            raise CheckpointError(
                f"architecture {name!r} is not supported: transformers {transformers.__version__} "
                f"does not know model type {kind!r}"
            )
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"the checkpoint's config.json cannot be used: {reason}") from error


def prune(model: PreTrainedModel, base: PreTrainedModel, plan: Plan, first: int, end: int) -> Skeleton:
    """Leave of a model on the meta device what layers `first` to `end` (exclusive) need.

    Names stay as they are, so that weights find their places; see `compact`.

    Raises:
        CheckpointError: the layer range is outside the model, or the cut is not a legal one.
    """
    layers = base.get_submodule(plan.layers)
    assert isinstance(layers, nn.ModuleList)
    total = len(layers)
    if not 0 <= first < end <= total:
        raise CheckpointError(f"layers {first}..{end} are outside the model's 0..{total}")
    tied = dict(model.all_tied_weights_keys)
    for name in plan.before if first else ():
        _drop(base, name)
    for name in plan.nothing if first else ():
        base.set_submodule(name, Nothing(), strict=True)
    for name in plan.after if end < total else ():
        _drop(base, name)
    for index in range(total):
        if not first <= index < end:
            layers[index] = Absent()
    if end < total:
        for name, child in list(model.named_children()):
            if child is not base and base is not model:
                setattr(model, name, Absent())
    return Skeleton(model, base, plan, first, end, total, tied)


def _drop(base: PreTrainedModel, name: str) -> None:
    """Make a module an absent one; of a list every member, since a forward takes them one by one."""
    module = base.get_submodule(name)
    if isinstance(module, nn.ModuleList):
        for index in range(len(module)):
            module[index] = Absent()
    else:
        base.set_submodule(name, Absent(), strict=True)


def compact(skeleton: Skeleton, caches: int = 1) -> None:
    """Drop the absent layers and make the kept ones count from 0: caches and settings are indexed by that number.

    Args:
        skeleton: filled.
        caches: entries of the model's cache that one layer has.
    """
    first, end = skeleton.first, skeleton.end
    kept = nn.ModuleList(list(skeleton.layers)[first:end])
    skeleton.base.set_submodule(skeleton.plan.layers, kept, strict=True)
    for local, layer in enumerate(kept):
        for module in layer.modules():
            for key in ("layer_idx", "layer_id"):
                if isinstance(number := getattr(module, key, None), int):
                    setattr(module, key, local if caches == 1 else number - first * caches)
    config = skeleton.base.config
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == skeleton.total and name.endswith(("_types", "_layout")):
            setattr(config, name, value[first:end])
    # Kinds of layers that a configuration works out from other settings, which still are the whole model's.
    worked_out = {}
    for name in dir(type(config)):
        if name.endswith(("_types", "_type")) and isinstance(getattr(type(config), name), property):
            value = getattr(config, name, None)
            if isinstance(value, list) and len(value) == skeleton.total:
                worked_out[name] = value[first:end]
    if worked_out:
        config.__class__ = type(type(config).__name__, (type(config),), worked_out)
