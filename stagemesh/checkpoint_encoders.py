"""What a checkpoint of a model without sessions is for: its task, its size, its inputs and outputs.

Texts, images and audio: which family is what, and how its configuration names things. Only `read_pooled` reads files.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stagemesh.checkpoint_files import positive
from stagemesh.errors import CheckpointError
from stagemesh.signature import ANY, Signature, Tensor, token_inputs

__all__ = ["Described", "Pooled", "describe", "read_pooled"]

_FLOATS = ("F32", "F16")
_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Described:
    """What `Checkpoint` says of such a model.

    Attributes:
        task: "embed", "classify", "classify_tokens", "rank" or "features".
        layers: how many.
        hidden_size: width between layers.
        vocab_size: token ids are below it; 0 when there are none.
        context_length: longest sequence in tokens; 0 when there are none.
        signature: inputs, outputs, rows, labels.
        ignored: beginnings of the names of tensors that are not served (a decoder's).
        shared: every layer has the same few tensors.
    """

    task: str
    layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    signature: Signature
    ignored: tuple[str, ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Pooled:
    """That the checkpoint has files of sentence-transformers. `dimension`: of its embeddings; 0 is the model's own."""

    dimension: int = 0


@dataclass(frozen=True, slots=True)
class _Family:
    kind: Literal["text", "decoder", "image", "audio", "features", "spectrum"]
    # The position table begins after the padding id.
    from_padding: bool = False
    token_types: bool = False
    ignored: tuple[str, ...] = ()
    shared: bool = False


_TYPED, _PADDED = _Family("text", token_types=True), _Family("text", from_padding=True)
_T5 = _Family("text", ignored=("decoder.", "lm_head."))

_FAMILIES: Mapping[str, _Family] = {
    "albert": _Family("text", token_types=True, shared=True),
    "audio-spectrogram-transformer": _Family("spectrum"),
    "beit": _Family("image"),
    "bert": _TYPED,
    "camembert": _PADDED,
    "clip": _Family("image", ignored=("text_model.", "text_projection.", "logit_scale")),
    "clip_text_model": _Family("text"),
    "clip_vision_model": _Family("image"),
    "data2vec-text": _PADDED,
    "deberta": _TYPED,
    "deberta-v2": _TYPED,
    "deit": _Family("image"),
    "dinov2": _Family("image"),
    "dinov2_with_registers": _Family("image"),
    "dinov3_vit": _Family("image"),
    "distilbert": _Family("text"),
    "electra": _TYPED,
    "ernie": _TYPED,
    "esm": _PADDED,
    "eurobert": _Family("text"),
    "gemma3_text": _Family("decoder"),
    "gte": _TYPED,
    "hubert": _Family("audio"),
    "jina_embeddings_v3": _TYPED,
    "llama": _Family("decoder"),
    "megatron-bert": _TYPED,
    "mistral": _Family("decoder"),
    "modernbert": _Family("text"),
    "mpnet": _PADDED,
    "mt5": _T5,
    "nomic_bert": _TYPED,
    "qwen2": _Family("decoder"),
    "qwen3": _Family("decoder"),
    "rembert": _TYPED,
    "roberta": _PADDED,
    "roberta-prelayernorm": _PADDED,
    "siglip_text_model": _Family("text"),
    "siglip_vision_model": _Family("image"),
    "t5": _T5,
    "umt5": _T5,
    "vit": _Family("image"),
    "wav2vec2": _Family("audio"),
    "wavlm": _Family("audio"),
    "whisper": _Family("features", ignored=("model.decoder.", "decoder.", "proj_out.")),
    "xlm-roberta": _PADDED,
    "xlm-roberta-xl": _PADDED,
}

_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
_BASES = ("Model", "ForMaskedLM", "ForPreTraining", "ForCausalLM", "ForConditionalGeneration", "Encoder")
_OTHER = ("ForCTC", "WithProjection", "ForTokenClassification")


def read_pooled(folder: Path) -> Pooled | None:
    """Whether a checkpoint was made into an embedding model, and how wide its embeddings are."""
    if not (folder / "modules.json").is_file():
        return Pooled() if (folder / "1_Pooling").is_dir() else None
    try:
        modules = [
            (str(one["type"]).rpartition(".")[2], str(one["path"])) for one in _load(folder / "modules.json")
        ]
        dimension = 0
        for kind, path in modules:
            if kind == "Pooling":
                config = _load(folder / path / "config.json")
                width = config.get("word_embedding_dimension") or config.get("embedding_dimension") or 0
                modes = sum(on is True for key, on in config.items() if key.startswith("pooling_mode_"))
                dimension = int(width) * max(1, modes)
            elif kind == "Dense":
                dimension = int(_load(folder / path / "config.json")["out_features"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("modules.json or what it names cannot be read", field="source") from None
    return Pooled(dimension)


def _load(path: Path) -> Any:
    return json.loads(path.read_text())


def describe(
    architecture: str,
    model_type: str,
    config: Mapping[str, Any],
    names: Iterable[str],
    pooled: Pooled | None,
) -> Described | None:
    """What the checkpoint is for; None when it is no model of this kind.

    Args:
        architecture: the model's class.
        model_type: the family.
        config: config.json.
        names: of the tensors in the weights.
        pooled: when there is a pooling configuration.

    Raises:
        CheckpointError: it is of such a family, and its configuration cannot be used.
    """
    family = _FAMILIES.get(model_type)
    if family is None or not architecture.endswith((*_CLASSIFIERS, *_OTHER, *_BASES)):
        return None
    if family.kind == "decoder" and pooled is None and not architecture.endswith(_CLASSIFIERS):
        return None  # generates
    if model_type == "clip":
        if not architecture.endswith("ForImageClassification"):
            raise CheckpointError(
                f"{architecture} has two towers: save the one to be served with CLIPTextModelWithProjection or "
                "CLIPVisionModelWithProjection",
                field="source",
            )
        config = {**config, **_mapping(config, "vision_config")}
    hidden = positive(config, "hidden_size", "d_model", "dim")
    text = family.kind in ("text", "decoder")
    task, outputs, labels = _outputs(architecture, text, config, set(names), hidden, pooled)
    inputs = _INPUTS[family.kind](config, family)
    layers = positive(
        config, "encoder_layers" if model_type == "whisper" else "num_hidden_layers", "n_layers", "num_layers"
    )
    if layers > _MAX_LAYERS:
        raise CheckpointError(f"config.json: {layers} layers", field="source")
    return Described(
        task=task,
        layers=layers,
        hidden_size=hidden,
        vocab_size=positive(config, "vocab_size") if text else 0,
        context_length=_context(config, family) if text else 0,
        signature=Signature(inputs, outputs, "token" if text else "sample", labels),
        ignored=family.ignored,
        shared=family.shared,
    )


def _outputs(
    architecture: str,
    text: bool,
    config: Mapping[str, Any],
    names: set[str],
    hidden: int,
    pooled: Pooled | None,
) -> tuple[str, tuple[Tensor, ...], tuple[str, ...]]:
    """Task, outputs and labels."""
    if architecture.endswith(_CLASSIFIERS):
        labels = _labels(config)
        task = "rank" if text and len(labels) == 1 else "classify"
        return task, (Tensor("logits", ("F32",), (ANY, len(labels))),), labels
    if architecture.endswith("ForTokenClassification"):
        labels = _labels(config)
        logits = Tensor("logits", ("F32",), (ANY, ANY, len(labels)), per_token=True)
        return "classify_tokens", (logits,), labels
    states = Tensor("last_hidden_state", ("F32",), (ANY, ANY, hidden), per_token=text)
    if architecture.endswith("ForCTC"):
        logits = Tensor("logits", ("F32",), (ANY, ANY, positive(config, "vocab_size")))
        return "features", (logits,), ()
    outputs = [states]
    if any(name.startswith(("pooler.", "head.")) or ".pooler." in name for name in names) or (
        # These pool without parameters that are called so.
        config.get("model_type")
        in ("clip_text_model", "clip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit")
    ):
        width = int(config.get("projection_size") or hidden) if architecture == "SiglipTextModel" else hidden
        outputs.append(Tensor("pooler_output", ("F32",), (ANY, width)))
    if architecture.endswith("WithProjection"):
        name = "text_embeds" if text else "image_embeds"
        outputs = [Tensor(name, ("F32",), (ANY, positive(config, "projection_dim"))), states]
    if not text:
        return "features", tuple(outputs), ()
    dimension = (pooled.dimension if pooled else 0) or hidden
    if not architecture.endswith("WithProjection"):
        outputs.insert(0, Tensor("sentence_embedding", ("F32",), (ANY, dimension)))
    return "embed", tuple(outputs), ()


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        try:
            by_index = {int(index): str(name) for index, name in named.items()}
            return tuple(by_index[index] for index in range(len(by_index)))
        except (KeyError, ValueError):
            raise CheckpointError(
                "config.json: id2label must number the labels from 0", field="source"
            ) from None
    count = config.get("num_labels", 2)  # transformers' own default
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**20:
        raise CheckpointError("config.json: num_labels must be a positive integer", field="source")
    return tuple(f"LABEL_{index}" for index in range(count))


def _context(config: Mapping[str, Any], family: _Family) -> int:
    keys = ("max_position_embeddings", "n_positions")
    if all(config.get(key) is None for key in keys):
        return 512  # positions are relative: what these models were trained on
    context = positive(config, *keys)
    if family.from_padding:
        padding = config.get("pad_token_id")
        context -= (1 if padding is None else int(padding)) + 1
    if context < 1:
        raise CheckpointError("config.json: no position is left after the padding id", field="source")
    return context


def _text(config: Mapping[str, Any], family: _Family) -> tuple[Tensor, ...]:
    types = config.get("type_vocab_size", 2)
    return token_inputs(["token_type_ids"] if family.token_types and types and types > 1 else ())


def _image(config: Mapping[str, Any], _: _Family) -> tuple[Tensor, ...]:
    size = config.get("image_size", 224)
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    channels = config.get("num_channels", 3)
    shape = (ANY, channels, height, width)
    return (_floats("pixel_values", shape),)


def _audio(*_: object) -> tuple[Tensor, ...]:
    return (_floats("input_values", (ANY, ANY)),)


def _features(config: Mapping[str, Any], _: _Family) -> tuple[Tensor, ...]:
    frames = 2 * positive(config, "max_source_positions")
    return (_floats("input_features", (ANY, positive(config, "num_mel_bins"), frames)),)


def _spectrum(config: Mapping[str, Any], _: _Family) -> tuple[Tensor, ...]:
    return (_floats("input_values", (ANY, positive(config, "max_length"), positive(config, "num_mel_bins"))),)


_INPUTS: Mapping[str, Callable[[Mapping[str, Any], _Family], tuple[Tensor, ...]]] = {
    "text": _text,
    "decoder": _text,
    "image": _image,
    "audio": _audio,
    "features": _features,
    "spectrum": _spectrum,
}


def _floats(name: str, shape: tuple[Any, ...]) -> Tensor:
    if not all(isinstance(size, int) and (size == ANY or 1 <= size < 2**20) for size in shape):
        raise CheckpointError(f"config.json: {name} would have the shape {list(shape)}", field="source")
    return Tensor(name, _FLOATS, shape)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = config.get(key)
    if not isinstance(inner, dict):
        raise CheckpointError(f"config.json has no {key}", field="source")
    return inner
