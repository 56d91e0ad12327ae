"""Small checkpoints of encoder families, with random weights of a fixed seed that make every layer matter.

`FAMILIES` maps a name to a function that writes such a checkpoint into a folder, in float32.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 97
LAYERS = 4
WIDTH = 48
HEADS = 4
LABELS = 3

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 80,
    "max_position_embeddings": 66,
}
_DISTIL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": 80,
    "max_position_embeddings": 66,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 80,
    "image_size": 24,
    "patch_size": 8,
}
_SPEECH: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 80,
    "conv_dim": (24, 24),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "head_dim": 12}


def strengthen(model: PreTrainedModel, seed: int = 11) -> PreTrainedModel:
    """Replace every parameter: outputs then depend on each layer as strongly as those of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and parameter.dim() == 1:
                parameter.copy_(noise * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.dim() > 1 and "embed" not in name:
                parameter.copy_(noise * 1.2 / max(1, parameter[0].numel()) ** 0.5)
            elif parameter.dim() > 1:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 0.3)
    return model.eval()


def _write(folder: Path, name: str, config: str, settings: Mapping[str, Any]) -> None:
    torch.manual_seed(3)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    strengthen(model).save_pretrained(folder)


def family(name: str, config: str, settings: Mapping[str, Any], **more: Any) -> Callable[[Path], None]:
    """A function that writes a checkpoint of architecture `name`."""
    return lambda folder: _write(folder, name, config, {**settings, **more})


def with_modules(write: Callable[[Path], None], pooling: str, *further: str) -> Callable[[Path], None]:
    """The checkpoint with files of sentence-transformers: pooling `mode`, then "Dense" or "Normalize"."""

    def written(folder: Path) -> None:
        write(folder)
        kinds = ["Transformer", "Pooling", *further]
        listing = []
        for index, kind in enumerate(kinds):
            path = "" if kind == "Transformer" else f"{index}_{kind}"
            listing.append(
                {
                    "idx": index,
                    "name": str(index),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
            )
            (folder / path).mkdir(exist_ok=True)
        (folder / "modules.json").write_text(json.dumps(listing))
        modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken", "max": "max_tokens"}
        pooled = {f"pooling_mode_{key}": mode == pooling for mode, key in modes.items()}
        config = {"word_embedding_dimension": WIDTH, **pooled}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        if "Dense" in further:
            _dense(folder / f"{kinds.index('Dense')}_Dense")

    return written


def _dense(folder: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(5)
    weights = {
        "linear.weight": torch.randn(20, WIDTH, generator=generator) / WIDTH**0.5,
        "linear.bias": torch.randn(20, generator=generator),
    }
    save_file(weights, folder / "model.safetensors")
    settings = {
        "in_features": WIDTH,
        "out_features": 20,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "config.json").write_text(json.dumps(settings))


_labels = {"num_labels": LABELS}
_small_ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
_small = {"embedding_size": 32}
_modern = {
    "global_attn_every_n_layers": 3,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_clip_text = {**_TEXT, "projection_dim": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_deberta = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}
_whisper = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "num_mel_bins": 10,
    "max_source_positions": 30,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _whisper_encoder(folder: Path) -> None:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(**_whisper)
    strengthen(WhisperEncoder(config)).save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "bert": family("BertModel", "BertConfig", _TEXT),
    "bert-mlm": family("BertForMaskedLM", "BertConfig", _TEXT),
    "bert-classify": family("BertForSequenceClassification", "BertConfig", _TEXT, **_labels),
    "bert-tokens": family("BertForTokenClassification", "BertConfig", _TEXT, **_labels),
    "bert-rank": family("BertForSequenceClassification", "BertConfig", _TEXT, num_labels=1),
    "roberta": family("RobertaModel", "RobertaConfig", _TEXT, pad_token_id=1),
    "roberta-classify": family("RobertaForSequenceClassification", "RobertaConfig", _TEXT, **_labels),
    "xlm-roberta": family("XLMRobertaModel", "XLMRobertaConfig", _TEXT),
    "xlm-roberta-tokens": family("XLMRobertaForTokenClassification", "XLMRobertaConfig", _TEXT, **_labels),
    "xlm-roberta-rank": family(
        "XLMRobertaForSequenceClassification", "XLMRobertaConfig", _TEXT, num_labels=1
    ),
    "xlm-roberta-xl": family("XLMRobertaXLModel", "XLMRobertaXLConfig", _TEXT),
    "camembert": family("CamembertModel", "CamembertConfig", _TEXT),
    "ernie": family("ErnieModel", "ErnieConfig", _TEXT),
    "roberta-prelayernorm": family("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", _TEXT),
    "data2vec-text": family("Data2VecTextModel", "Data2VecTextConfig", _TEXT),
    "distilbert": family("DistilBertModel", "DistilBertConfig", _DISTIL),
    "distilbert-classify": family(
        "DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL, **_labels
    ),
    "distilbert-tokens": family("DistilBertForTokenClassification", "DistilBertConfig", _DISTIL, **_labels),
    "electra": family("ElectraModel", "ElectraConfig", _TEXT, **_small),
    "electra-classify": family(
        "ElectraForSequenceClassification", "ElectraConfig", _TEXT, **_small, **_labels
    ),
    "albert": family("AlbertModel", "AlbertConfig", _TEXT, **_small),
    "mpnet": family("MPNetModel", "MPNetConfig", _TEXT),
    "mpnet-classify": family("MPNetForSequenceClassification", "MPNetConfig", _TEXT, **_labels),
    "modernbert": family("ModernBertModel", "ModernBertConfig", _TEXT, **_modern),
    "modernbert-classify": family(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _TEXT,
        **_modern,
        **_labels,
        classifier_pooling="mean",
    ),
    "modernbert-tokens": family(
        "ModernBertForTokenClassification", "ModernBertConfig", _TEXT, **_modern, **_labels
    ),
    "deberta": family("DebertaModel", "DebertaConfig", _TEXT, **_deberta),
    "deberta-v2": family("DebertaV2Model", "DebertaV2Config", _TEXT, **_deberta),
    "deberta-v2-classify": family(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT, **_deberta, **_labels
    ),
    "nomic-bert": family("NomicBertModel", "NomicBertConfig", _TEXT, head_dim=12),
    "eurobert": family("EuroBertModel", "EuroBertConfig", _DECODER, **_small_ids),
    "gte": family("GteModel", "GteConfig", _TEXT),
    "jina-v3": family("JinaEmbeddingsV3Model", "JinaEmbeddingsV3Config", _TEXT),
    "esm": family(
        "EsmModel", "EsmConfig", _TEXT, pad_token_id=1, mask_token_id=5, position_embedding_type="rotary"
    ),
    "megatron-bert": family("MegatronBertModel", "MegatronBertConfig", _TEXT),
    "rembert": family("RemBertModel", "RemBertConfig", _TEXT, input_embedding_size=32),
    "t5-encoder": family("T5EncoderModel", "T5Config", _T5, is_encoder_decoder=False),
    "t5": family("T5ForConditionalGeneration", "T5Config", _T5),
    "umt5-encoder": family("UMT5EncoderModel", "UMT5Config", _T5),
    "mt5-encoder": family("MT5EncoderModel", "MT5Config", _T5),
    "clip-text": family("CLIPTextModel", "CLIPTextConfig", _clip_text),
    "clip-text-projection": family("CLIPTextModelWithProjection", "CLIPTextConfig", _clip_text),
    "siglip-text": family("SiglipTextModel", "SiglipTextConfig", {**_TEXT, "projection_size": 20}),
    "qwen2-embedding": with_modules(family("Qwen2Model", "Qwen2Config", _DECODER), "last", "Normalize"),
    "qwen3-embedding": with_modules(family("Qwen3ForCausalLM", "Qwen3Config", _DECODER), "last", "Normalize"),
    "mistral-embedding": with_modules(
        family("MistralModel", "MistralConfig", _DECODER, sliding_window=7), "last", "Normalize"
    ),
    "gemma3-embedding": with_modules(
        family(
            "Gemma3TextModel",
            "Gemma3TextConfig",
            _DECODER,
            sliding_window=8,
            use_bidirectional_attention=True,
        ),
        "mean",
        "Dense",
        "Normalize",
    ),
    "qwen3-rank": family(
        "Qwen3ForSequenceClassification", "Qwen3Config", _DECODER, num_labels=1, pad_token_id=0
    ),
    "vit": family("ViTModel", "ViTConfig", _IMAGE),
    "vit-classify": family("ViTForImageClassification", "ViTConfig", _IMAGE, **_labels),
    "deit": family("DeiTModel", "DeiTConfig", _IMAGE),
    "deit-classify": family("DeiTForImageClassification", "DeiTConfig", _IMAGE, **_labels),
    "beit": family("BeitModel", "BeitConfig", _IMAGE, use_relative_position_bias=True),
    "dinov2": family("Dinov2Model", "Dinov2Config", _IMAGE),
    "dinov2-classify": family("Dinov2ForImageClassification", "Dinov2Config", _IMAGE, **_labels),
    "dinov2-registers": family("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", _IMAGE),
    "dinov3": family("DINOv3ViTModel", "DINOv3ViTConfig", _IMAGE, num_register_tokens=2),
    "clip-vision": family("CLIPVisionModel", "CLIPVisionConfig", _IMAGE),
    "clip-vision-projection": family(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", _IMAGE, projection_dim=20
    ),
    "clip-classify": family(
        "CLIPForImageClassification",
        "CLIPConfig",
        {"vision_config": _IMAGE, "text_config": _clip_text, **_labels},
    ),
    "siglip-vision": family("SiglipVisionModel", "SiglipVisionConfig", _IMAGE),
    "whisper": family("WhisperForConditionalGeneration", "WhisperConfig", _whisper),
    "whisper-encoder": _whisper_encoder,
    "whisper-classify": family("WhisperForAudioClassification", "WhisperConfig", _whisper, **_labels),
    "wav2vec2": family("Wav2Vec2Model", "Wav2Vec2Config", _SPEECH),
    "wav2vec2-stable": family(
        "Wav2Vec2Model", "Wav2Vec2Config", _SPEECH, do_stable_layer_norm=True, feat_extract_norm="layer"
    ),
    "wav2vec2-ctc": family("Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH, vocab_size=VOCAB),
    "hubert": family("HubertModel", "HubertConfig", _SPEECH),
    "wavlm": family("WavLMModel", "WavLMConfig", _SPEECH, num_buckets=16),
    "ast-classify": family(
        "ASTForAudioClassification",
        "ASTConfig",
        {
            **_IMAGE,
            "max_length": 20,
            "num_mel_bins": 12,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
        },
        **_labels,
    ),
}
