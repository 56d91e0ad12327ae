"""The part of an encoder that one partition runs, and the two ways in which its own forward is called.

For a pass, the module that holds the layers is called with this partition's layers alone: `Enter` in the place of those
before, `Leave` in the place of those after. For an output, the model is called with no layer at all: hidden states
enter where the layers were, and final norms, poolers and heads are what the model makes of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError

from .encoder_attention import NAME
from .encoder_parts import Door, Enter, Given, Leave
from .encoder_plans import EncoderPlan, holder_of, plan_of, present
from .plans import Plan
from .skeleton import Absent, Skeleton, prune

# Architectures of which only the encoder is served: the class that has it.
_ENCODER_OF = {
    "T5ForConditionalGeneration": "T5EncoderModel",
    "T5Model": "T5EncoderModel",
    "MT5ForConditionalGeneration": "MT5EncoderModel",
    "MT5Model": "MT5EncoderModel",
    "UMT5ForConditionalGeneration": "UMT5EncoderModel",
    "UMT5Model": "UMT5EncoderModel",
    "WhisperForConditionalGeneration": "WhisperModel",
}
_NAMED = ("EncoderModel", "CLIPTextModel", "CLIPVisionModel", "SiglipTextModel", "SiglipVisionModel")
_WITH_HEAD = ("Classification", "WithProjection", "ForCTC")


def model_class(checkpoint: Checkpoint) -> Any:
    """The model library's class that gives the outputs of a checkpoint; `AutoModel` for a bare encoder."""
    name = _ENCODER_OF.get(checkpoint.architecture, checkpoint.architecture)
    if name == "WhisperEncoder":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperEncoder
    if name.endswith((*_WITH_HEAD, *_NAMED)) or name in _ENCODER_OF.values():
        found = getattr(transformers, name, None)
        if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
            raise CheckpointError(f"transformers has no architecture {name[:80]!r}")
        return found
    return AutoModel


def whole_model(folder: Path, checkpoint: Checkpoint) -> Any:
    """The same outputs from the model in one piece, in float32, as its own library loads it: what a split is held to."""
    model = model_class(checkpoint).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return model.get_encoder() if checkpoint.architecture == "WhisperForConditionalGeneration" else model


class Cut:
    """A loaded part of an encoder.

    Args:
        skeleton: pruned and, by the time of `install`, loaded.
        plan: how it was cut.
        inner: modules before the layers, by name, whether or not this partition has them.
    """

    def __init__(self, skeleton: Skeleton, plan: EncoderPlan, inner: dict[str, nn.Module]) -> None:
        self.skeleton = skeleton
        self.plan = plan
        self.given = Given()
        self._inner = inner
        self._pass = nn.ModuleList()
        self._rest = nn.ModuleList()

    @property
    def model(self) -> Any:
        """With its head."""
        return self.skeleton.model

    @property
    def holder(self) -> Any:
        """What has the layers."""
        return self.skeleton.base

    def install(self) -> None:
        """Put doors, entrance and exit in place; once the weights are there."""
        skeleton, plan = self.skeleton, self.plan
        first = skeleton.first == 0
        for name, inner in self._inner.items():
            self.holder.set_submodule(name, Door(inner, name, first, self.given, name in plan.pairs))
        layers = _kept(self.holder, skeleton, plan)
        enter = Enter(layers[0], self.given, plan.answer)
        self._pass = nn.ModuleList([*([] if first else [enter]), *layers, Leave(layers[-1])])
        self._rest = nn.ModuleList([enter])
        config = self.holder.config
        types = getattr(config, "layer_types", None)
        if types and len(types) == skeleton.total:
            own = types[skeleton.first : skeleton.end]
            config.layer_types = [*([] if first else own[:1]), *own, own[-1]]
        self._use(self._pass)

    def _use(self, layers: nn.ModuleList) -> None:
        self.holder.set_submodule(self.plan.layers, layers)
        config = self.holder.config
        config.num_hidden_layers = len(layers)
        if self.plan.shared:
            config.num_hidden_groups = len(layers)

    @contextmanager
    def no_layers(self, hidden: torch.Tensor) -> Iterator[None]:
        """For as long as it lasts `hidden` `[samples, rows, width]` is what the layers gave."""
        before, self.given.hidden = self.given.hidden, hidden
        self._use(self._rest)
        try:
            yield
        finally:
            self._use(self._pass)
            self.given.hidden = before


def build_encoder(
    config: PreTrainedConfig, checkpoint: Checkpoint, first: int, end: int, dtype: torch.dtype
) -> Cut:
    """Layers `first` to `end` (exclusive) on the meta device, to be loaded and then installed.

    Raises:
        CheckpointError: the architecture has no plan, or the layer range is outside the model.
    """
    plan = plan_of(config)
    config.output_hidden_states = False
    config.output_attentions = False
    with torch.device("meta"):
        model = _construct(
            model_class(checkpoint), config, checkpoint, dtype, NAME if plan.ragged else "sdpa"
        )
    model.eval()
    holder = _holder(model, plan)
    before, after = present(holder, plan.before), present(holder, plan.after)
    inner = {name: holder.get_submodule(name) for name in before}
    own = Plan(plan.layers, before, after)
    if plan.shared:
        skeleton = _prune_shared(model, holder, own, first, end)
    else:
        _first_layer(holder, plan, first)
        skeleton = prune(model, holder, own, first, end)
        _share_first(skeleton, plan)
    return Cut(skeleton, plan, inner)


def _holder(model: PreTrainedModel, plan: EncoderPlan) -> Any:
    decoder = getattr(model, "decoder", None)
    if isinstance(decoder, nn.Module) and isinstance(getattr(model, "encoder", None), PreTrainedModel):
        model.decoder = Absent()
    return holder_of(model, plan)


def _construct(
    klass: Any, config: PreTrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype, attention: str
) -> Any:
    """The whole model: with a pooler only where the weights have one, with its own attention where it must."""
    if klass is not AutoModel and not isinstance(config, klass.config_class):
        raise CheckpointError(f"architecture {klass.__name__!r} is not one of {config.model_type!r}")
    settings: dict[str, Any] = {"dtype": dtype}
    if klass is AutoModel and not any(name == "pooler_output" for name in _output_names(checkpoint)):
        settings["add_pooling_layer"] = False
    make = klass.from_config if klass is AutoModel else klass._from_config
    tries = [
        (attention, settings),
        (attention, {"dtype": dtype}),
        ("eager", settings),
        ("eager", {"dtype": dtype}),
    ]
    for name, arguments in tries[:-1]:
        try:
            return make(config, attn_implementation=name, **arguments)
        except (ValueError, TypeError):
            continue
    return make(config, attn_implementation="eager", dtype=dtype)


def _output_names(checkpoint: Checkpoint) -> list[str]:
    return [output.name for output in checkpoint.outputs]


def _first_layer(holder: Any, plan: EncoderPlan, first: int) -> None:
    """Give this partition's first layer what in the whole model only layer 0 has."""
    if not first:
        return
    layers = holder.get_submodule(plan.layers)
    for name in plan.first_layer_only if first < len(layers) else ():
        owner, _, leaf = name.rpartition(".")
        target = layers[first].get_submodule(owner)
        setattr(target, leaf, layers[0].get_submodule(name))
        setattr(target, f"has_{leaf}", True)


def _share_first(skeleton: Skeleton, plan: EncoderPlan) -> None:
    """Have `load_weights` read what layer 0 gave to another layer under its name in the checkpoint."""
    if not skeleton.first:
        return
    root = next(name for name, module in skeleton.model.named_modules() if module is skeleton.base)
    path = f"{root}.{plan.layers}" if root else plan.layers
    for name in plan.first_layer_only:
        skeleton.tied[f"{path}.{skeleton.first}.{name}.weight"] = f"{path}.0.{name}.weight"


def _prune_shared(model: Any, holder: Any, plan: Plan, first: int, end: int) -> Skeleton:
    total = holder.config.num_hidden_layers
    if not 0 <= first < end <= total:
        raise CheckpointError(f"layers {first}..{end} are outside the model's 0..{total}")
    for name in plan.before if first else ():
        holder.set_submodule(name, Absent(), strict=True)
    for name in plan.after if end < total else ():
        holder.set_submodule(name, Absent(), strict=True)
    if end < total and holder is not model:
        for name, child in list(model.named_children()):
            if child is not holder:
                setattr(model, name, Absent())
    return Skeleton(model, holder, plan, first, end, total, dict(model.all_tied_weights_keys))


def _kept(holder: Any, skeleton: Skeleton, plan: EncoderPlan) -> list[nn.Module]:
    layers = list(holder.get_submodule(plan.layers))
    if not plan.shared:
        return layers[skeleton.first : skeleton.end]
    share = skeleton.total / len(layers)
    return [layers[int(index / share)] for index in range(skeleton.first, skeleton.end)]
