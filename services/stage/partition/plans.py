"""How a language model's module tree is cut: what comes before its layers, and what after."""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from stagemesh.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Plan:
    """Dotted names inside the base model: the layer list, and what belongs before and after it."""

    layers: str
    before: tuple[str, ...]
    after: tuple[str, ...]


# Families without a pipeline plan of their own, by model type.
_PLANS: dict[str, Plan] = {}


def plan_of(config: PreTrainedConfig, base: PreTrainedModel) -> Plan:
    """How this architecture is cut.

    Raises:
        CheckpointError: neither transformers nor this file has a plan for it.
    """
    if config.model_type in _PLANS:
        return _PLANS[config.model_type]
    named = list(getattr(config, "base_model_pp_plan", None) or ())
    if "layers" in named:
        middle = named.index("layers")
        present = [name for name in named if hasattr(base, name)]
        middle = present.index("layers")
        return Plan("layers", tuple(present[:middle]), tuple(present[middle + 1 :]))
    raise CheckpointError(f"architecture {config.model_type!r} has no pipeline plan: it cannot be split")
