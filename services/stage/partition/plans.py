"""How a language model's module tree is cut: what comes before its layers, and what after.

The plan that the model library publishes comes first. Where there is none, the tree and the source of the model's own
forward say it (`loop.py`), or the model is refused: what goes over a boundary must be all that later layers need.
"""

import inspect
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stagemesh.errors import CheckpointError

from .loop import NotUnderstoodError, read_loop


@dataclass(frozen=True, slots=True)
class Plan:
    """Dotted names inside the base model.

    Attributes:
        layers: the list of layers.
        before: what only the first partition needs; elsewhere it passes on what it is given.
        after: what only the last partition needs.
        nothing: of what only the first partition needs, what gives something to be added (tables of positions).
    """

    layers: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    nothing: tuple[str, ...] = ()


# Families that no plan can serve, and why.
_REFUSED = {
    "recurrent_gemma": "its layers keep one sequence's state in themselves, and sessions would mix",
    "moshi": "split and whole were seen to differ",
}


def plan_of(config: PreTrainedConfig, base: PreTrainedModel) -> Plan:
    """How this architecture is cut.

    Args:
        config: of the model.
        base: its base model, whole; the meta device will do.

    Raises:
        CheckpointError: it has no published plan, and its forward may do something that a cut would break.
    """
    named = list(getattr(config, "base_model_pp_plan", None) or ())
    if "layers" in named:
        present = [name for name in named if hasattr(base, name)]
        middle = present.index("layers")
        return Plan("layers", tuple(present[:middle]), tuple(present[middle + 1 :]))
    try:
        if config.model_type in _REFUSED:
            raise NotUnderstoodError(_REFUSED[config.model_type])
        return _read(config, base)
    except NotUnderstoodError as error:
        reason = f"it has no pipeline plan, and {error}"
        raise CheckpointError(f"architecture {config.model_type!r} cannot be split: {reason}") from error


def _read(config: PreTrainedConfig, base: PreTrainedModel) -> Plan:
    """The plan of a base model without a published one."""
    path = _layers(config, base)
    parent, _, name = path.rpartition(".")
    prefix = f"{parent}." if parent else ""
    host = base.get_submodule(parent)
    elsewhere = [found for found, _ in base.named_parameters() if not found.startswith(prefix)]
    if elsewhere:
        raise NotUnderstoodError(f"it keeps {elsewhere[0]!r} outside of the module with its layers")
    own = [found for found, _ in host.named_parameters(recurse=False)]
    if own:
        raise NotUnderstoodError(f"it uses a parameter of its own, {own[0]!r}, around its layers")
    _check_signature(base)
    children = dict(host.named_children())
    rotary = frozenset(key for key, child in children.items() if "Rotary" in type(child).__name__)
    loop = read_loop(type(host).forward, name, rotary)
    embedding = base.get_input_embeddings()
    before: list[str] = []
    after: list[str] = []
    nothing: list[str] = []
    for key, child in children.items():
        # What has no weights (dropout, rotary positions) may stay everywhere, and what layers share must.
        if key == name or key in loop.within or next(child.parameters(), None) is None:
            continue
        early, late = key in loop.before, key in loop.after
        if not early and not late:
            raise NotUnderstoodError(f"what it does with {key!r} is not to be seen in its forward")
        if late and not early:
            after.append(prefix + key)
        elif early and not late:
            added = isinstance(child, nn.Embedding) and child is not embedding
            (nothing if added else before).append(prefix + key)
    if not any(embedding in base.get_submodule(found).modules() for found in before):
        raise NotUnderstoodError("its embeddings are not used before its layers alone")
    return Plan(path, tuple(before), tuple(after), tuple(nothing))


def _layers(config: PreTrainedConfig, base: PreTrainedModel) -> str:
    """The only list with a module, and with weights, for each layer."""
    total = config.get_text_config(decoder=True).num_hidden_layers
    found: list[str] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if not isinstance(module, nn.ModuleList) or len(module) != total or inside:
            continue
        if all(next(layer.parameters(), None) is not None for layer in module):
            found.append(name)
    if len(found) != 1:
        raise NotUnderstoodError(f"it has {len(found)} lists of {total} layers")
    return found[0]


def _check_signature(base: PreTrainedModel) -> None:
    """A stage calls the base model with hidden states for embeddings and a session's cache."""
    takes = inspect.signature(base.forward).parameters
    if "inputs_embeds" not in takes:
        raise NotUnderstoodError("it takes token ids only")
    if not {"past_key_values", "cache_params"} & set(takes):
        raise NotUnderstoodError("it has no cache of the kind that a session keeps")
