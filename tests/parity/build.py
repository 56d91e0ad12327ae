"""Small checkpoints of any causal language model that the installed transformers has, with weights that matter."""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# What a configuration is shrunken to, where it has the setting. Families with other wishes: `causal_settings.py`.
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Mixtures of experts.
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Latent attention.
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    # Linear attention.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 128,
    "global_head_dim": 16,
}
ALWAYS = ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "bos_token_id", "eos_token_id")


def shrunken(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """The family's configuration with `SMALL` sizes and `settings` on top; a setting of None is left as it is."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    given = {name: value for name, value in SMALL.items() if name in ALWAYS or _has(default, name)}
    given.update(settings)
    return kind(**{name: value for name, value in given.items() if value is not None})


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return getattr(config, name, None) is not None
    except RuntimeError:
        return False  # it differs from layer to layer: the family's own settings say


def write(folder: Path, config: PreTrainedConfig, model_class: Any = AutoModelForCausalLM) -> None:
    """Save a checkpoint of `config` with random weights from a fixed seed.

    Weights are as large as keep the activations' scale, and norms and biases are no ones and zeros: a layer that is
    left out, a wrong position or a lost state then changes every output.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = model_class.from_config(config, dtype=torch.float32)
    strengthen(model)
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def strengthen(model: nn.Module) -> None:
    """Give every parameter values that matter, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(noise)
            elif parameter.dim() >= 2:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                # Which experts each token id goes to (DeepSeek V4): different ones.
                experts = torch.rand(buffer.shape[0], SMALL["n_routed_experts"], generator=generator).argsort(
                    1
                )
                buffer.copy_(experts[:, : buffer.shape[1]])


def quiet() -> None:
    """One thread, no warnings: many of these run side by side."""
    torch.set_num_threads(1)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers.logging.set_verbosity_error()
