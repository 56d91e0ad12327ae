"""How models without a KV state are cut: what comes before their layers, and what after. One line a family."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stagemesh.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """Dotted names inside the module that holds the layers. What is named nowhere stays on every partition.

    Attributes:
        layers: the list of layers.
        before: modules that only the first partition has.
        after: modules that only the last partition has.
        ragged: rows of all samples go through in one piece, since attention is the only place that knows samples.
        final: nothing but poolers comes after the layers: their result is the last hidden state.
        ids_at_end: what comes after the layers looks at token ids.
        answer: how a layer answers: 0 a tensor, n a tuple of n whose first is the hidden state.
        shared: layers are the same few modules again and again, on every partition.
        first_layer_only: parameters of layer 0 that all layers work with, by their name inside a layer.
        pairs: modules of `before` that give two values.
    """

    layers: str
    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    ragged: bool = False
    final: bool = False
    ids_at_end: bool = False
    answer: int = 0
    shared: bool = False
    first_layer_only: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()


_BERT = EncoderPlan("encoder.layer", ("embeddings",), ("pooler",), ragged=True, final=True)
_DECODER = EncoderPlan("layers", ("embed_tokens",), ("norm",), ragged=True, ids_at_end=True)
_IMAGE = EncoderPlan("layers", ("embeddings",), ("layernorm", "pooler"))
_CLIP_TEXT = EncoderPlan(
    "encoder.layers", ("embeddings",), ("final_layer_norm", "head"), ragged=True, ids_at_end=True
)
_CLIP_IMAGE = EncoderPlan("encoder.layers", ("embeddings", "pre_layrnorm"), ("post_layernorm", "head"))
_T5 = EncoderPlan(
    "encoder.block",
    ("shared", "encoder.embed_tokens"),
    ("encoder.final_layer_norm",),
    answer=3,
    first_layer_only=("layer.0.SelfAttention.relative_attention_bias",),
)
_SPEECH = EncoderPlan(
    "encoder.layers",
    ("feature_extractor", "feature_projection", "encoder.pos_conv_embed", "encoder.layer_norm"),
    ("adapter",),
    pairs=("feature_projection",),
)
_DINO = EncoderPlan("encoder.layer", ("embeddings",), ("layernorm", "pooler"))
_DEBERTA = EncoderPlan("encoder.layer", ("embeddings",), final=True, answer=2)

PLANS: Mapping[str, EncoderPlan] = {
    "albert": EncoderPlan(
        "encoder.albert_layer_groups",
        ("embeddings", "encoder.embedding_hidden_mapping_in"),
        ("pooler", "pooler_activation"),
        ragged=True,
        final=True,
        shared=True,
    ),
    "audio-spectrogram-transformer": _IMAGE,
    "beit": _IMAGE,
    "bert": _BERT,
    "camembert": _BERT,
    "clip": _CLIP_IMAGE,
    "clip_text_model": _CLIP_TEXT,
    "clip_vision_model": _CLIP_IMAGE,
    "data2vec-text": _BERT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "deit": _IMAGE,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "dinov3_vit": EncoderPlan("model.layer", ("embeddings",), ("norm",)),
    "distilbert": EncoderPlan("transformer.layer", ("embeddings",), ragged=True, final=True),
    "electra": EncoderPlan("encoder.layer", ("embeddings", "embeddings_project"), ragged=True, final=True),
    "ernie": _BERT,
    "esm": EncoderPlan(
        "encoder.layer", ("embeddings",), ("encoder.emb_layer_norm_after", "pooler", "contact_head")
    ),
    "eurobert": EncoderPlan("layers", ("embed_tokens",), ("norm",), ragged=True),
    "gemma3_text": _DECODER,
    "gte": EncoderPlan("layers", ("embeddings",), ("pooler",), ragged=True, final=True),
    "hubert": replace(_SPEECH, pairs=()),
    "jina_embeddings_v3": EncoderPlan(
        "layers", ("embeddings", "emb_ln"), ("pooler",), ragged=True, final=True
    ),
    "llama": _DECODER,
    "megatron-bert": EncoderPlan("encoder.layer", ("embeddings",), ("encoder.ln", "pooler"), answer=2),
    "mistral": _DECODER,
    "modernbert": EncoderPlan("layers", ("embeddings",), ("final_norm",), ragged=True),
    "mpnet": EncoderPlan("encoder.layer", ("embeddings",), ("pooler",), final=True, answer=2),
    "mt5": _T5,
    "nomic_bert": EncoderPlan("layers", ("embeddings", "emb_ln"), ("pooler",), ragged=True, final=True),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "rembert": EncoderPlan(
        "encoder.layer",
        ("embeddings", "encoder.embedding_hidden_mapping_in"),
        ("pooler",),
        final=True,
        answer=2,
    ),
    "roberta": _BERT,
    "roberta-prelayernorm": EncoderPlan(
        "encoder.layer", ("embeddings",), ("LayerNorm", "pooler"), ragged=True
    ),
    "siglip_text_model": _CLIP_TEXT,
    "siglip_vision_model": _CLIP_IMAGE,
    "t5": _T5,
    "umt5": EncoderPlan(_T5.layers, _T5.before, _T5.after),
    "vit": _IMAGE,
    "wav2vec2": _SPEECH,
    "wavlm": replace(_SPEECH, answer=2, first_layer_only=("attention.rel_attn_embed",)),
    "whisper": EncoderPlan("layers", ("conv1", "conv2", "embed_positions"), ("layer_norm",)),
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": EncoderPlan(
        "encoder.layer", ("embeddings",), ("encoder.LayerNorm", "pooler"), ragged=True
    ),
}


def plan_of(config: PreTrainedConfig) -> EncoderPlan:
    """How this architecture is cut.

    Raises:
        CheckpointError: there is no plan for it, or not for these settings.
    """
    kind = config.model_type
    if kind not in PLANS:
        raise CheckpointError(f"architecture {kind!r} has no plan as an encoder: it cannot be split")
    plan = PLANS[kind]
    if getattr(config, "conv_kernel_size", 0) and kind.startswith("deberta"):
        raise CheckpointError("a DeBERTa with a convolution beside its first layer cannot be split")
    if getattr(config, "is_decoder", False) and plan is not _DECODER:
        raise CheckpointError(f"a {kind!r} that was made into a decoder cannot be split")
    if getattr(config, "add_cross_attention", False):
        raise CheckpointError(f"a {kind!r} with cross-attention cannot be split")
    if getattr(config, "use_weighted_layer_sum", False):
        raise CheckpointError("a classifier over the states of all layers cannot be split")
    if (
        plan.layers == _SPEECH.layers
        and "feature_extractor" in plan.before
        and getattr(config, "do_stable_layer_norm", False)
    ):
        return replace(plan, before=plan.before[:-1], after=("encoder.layer_norm", *plan.after))
    return plan


def holder_of(model: PreTrainedModel, plan: EncoderPlan) -> PreTrainedModel:
    """The module inside `model`, or `model` itself, that has the plan's layers: its own forward runs them.

    Raises:
        CheckpointError: none has.
    """
    candidates: list[Any] = [model, *model.children()]
    candidates += [inner for child in model.children() for inner in child.children()]
    for candidate in candidates:
        if isinstance(candidate, PreTrainedModel) and isinstance(
            _find(candidate, plan.layers), nn.ModuleList
        ):
            return candidate
    raise CheckpointError(f"architecture {type(model).__name__!r} has not the layers that were expected")


def present(holder: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the names that the module has: which ones depends on settings."""
    return tuple(name for name in names if _find(holder, name) is not None)


def _find(module: nn.Module, name: str) -> nn.Module | None:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None
