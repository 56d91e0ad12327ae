"""The part of a transformers model that one partition runs: a skeleton on the meta device.

Causal language models are cut by transformers' own pipeline plan (`base_model_pp_plan`): the modules it names
before the layers stay on the first partition, those after on the last, and absent ones become identities, so
that the model's own forward runs unchanged. Families without a plan have an entry in `_PLANS`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from stagemesh.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Plan:
    """Dotted names inside the base model: the layer list, and what belongs before and after it."""

    layers: str
    before: tuple[str, ...]
    after: tuple[str, ...]


# Encoders without a pipeline plan of their own.
_PLANS: dict[str, Plan] = {
    "bert": Plan("encoder.layer", ("embeddings",), ()),
}


@dataclass(slots=True)
class Skeleton:
    """A pruned model on the meta device.

    `base` maps embeddings or hidden states `[1, tokens, hidden]` to hidden states; `head` (last partition of a
    causal LM, else None) maps those to logits. `renamed` gives, for each kept layer's parameter prefix, its
    prefix in the checkpoint.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    head: nn.Module | None
    plan: Plan
    task: str
    renamed: dict[str, str]


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


def plan_of(config: PreTrainedConfig) -> Plan:
    """How this architecture is cut.

    Raises:
        CheckpointError: it has no pipeline plan here or in transformers.
    """
    if config.model_type in _PLANS:
        return _PLANS[config.model_type]
    named = list(getattr(config, "base_model_pp_plan", None) or ())
    if "layers" not in named:
        raise CheckpointError(f"architecture {config.model_type!r} has no pipeline plan: it cannot be split")
    middle = named.index("layers")
    return Plan("layers", tuple(named[:middle]), tuple(named[middle + 1 :]))


def build(config: PreTrainedConfig, task: str, first: int, end: int, attention: str) -> Skeleton:
    """Build layers `first` to `end` (exclusive) on the meta device.

    Args:
        config: of the whole model; it is changed to that of the partition.
        task: "generate" (a causal LM, with its head on the last partition) or "embed".
        first: first layer.
        end: one past the last layer.
        attention: name of the attention implementation.

    Raises:
        CheckpointError: the architecture has no plan, or the layer range is outside the model.
    """
    plan = plan_of(config)
    factory = AutoModelForCausalLM if task == "generate" else AutoModel
    extra = {} if task == "generate" else {"add_pooling_layer": False}
    with torch.device("meta"):
        model = factory.from_config(config, attn_implementation=attention, **extra)
    model.eval().requires_grad_(False)
    base = model.base_model
    layers = base.get_submodule(plan.layers)
    total = len(layers)
    if not 0 <= first < end <= total:
        raise CheckpointError(f"layers {first}..{end} are outside the model's 0..{total}")
    is_first, is_last = first == 0, end == total

    for name in plan.before if not is_first else ():
        base.set_submodule(name, nn.Identity(), strict=True)
    for name in plan.after if not is_last else ():
        base.set_submodule(name, nn.Identity(), strict=True)
    kept = nn.ModuleList(layers[first:end])
    base.set_submodule(plan.layers, kept, strict=True)
    _renumber(kept, config, first, end)

    head: nn.Module | None = None
    if task == "generate":
        head = model.get_output_embeddings() if is_last else None
        if not is_last:
            model.set_output_embeddings(nn.Identity())
    prefix = "" if base is model else f"{model.base_model_prefix}."
    renamed = {
        f"{prefix}{plan.layers}.{local}.": f"{prefix}{plan.layers}.{first + local}."
        for local in range(end - first)
    }
    return Skeleton(model, base, head, plan, task, renamed)


def _renumber(layers: nn.ModuleList, config: PreTrainedConfig, first: int, end: int) -> None:
    """Make the kept layers count from 0: they index caches and per-layer settings with it."""
    for local, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = local
    config.num_hidden_layers = end - first
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types[first:end])
