"""Causal language models whose pipeline plan is read from their own code, as small checkpoints.

`SETTINGS` keeps what makes each family special: multi-query attention, alibi, windows, recurrent layers among others.
A name after a family's, with a dash, is another architecture of the same family.
"""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from .build import shrunken, write

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_head": 32, "mamba_n_heads": 4}
# Mamba 2 sums in chunks: several of them in the longest prompt.
_MAMBA2 = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8}
_MPT_ATTENTION = {"alibi": True}

SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {
        **_MAMBA,
        "mamba_chunk_size": 8,
        "mamba_n_groups": 2,
        "attn_layer_indices": [1, 4],
    },
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4},
    "codegen": {"n_head": 4, "rotary_dim": 8, "n_ctx": 256},
    "ctrl": {"dff": 96, "n_head": 4},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 6,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": _ROPE,
    },
    "diffllama": {},
    "falcon": {"head_dim": None, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-multi-query": {"head_dim": None},
    "falcon-alibi": {
        "head_dim": None,
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
    "falcon_h1": {
        **_MAMBA,
        "mamba_d_ssm": 128,
        "mamba_chunk_size": 8,
        "mamba_n_groups": 2,
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.5,
    },
    "falcon_mamba": {"state_size": 8, "time_step_rank": 8},
    "gpt-sw3": {"n_head": 4},
    "gpt2": {"n_head": 4},
    "gpt_bigcode": {"n_head": 4, "n_inner": 96, "multi_query": True},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 3]],
        "window_size": 8,
        "num_heads": 4,
    },
    "gpt_neox_japanese": {"head_dim": None},
    "gptj": {"n_head": 4, "rotary_dim": 8},
    "granitemoe": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "granitemoe_swa": {
        "embedding_multiplier": 3.0,
        "layer_types": ["full_attention", "sliding_attention"] * 3,
    },
    "granitemoehybrid": {
        **_MAMBA,
        "mamba_chunk_size": 8,
        "mamba_n_groups": 2,
        "layer_types": ["mamba", "attention", "mamba"] * 2,
        "embedding_multiplier": 3.0,
        "shared_intermediate_size": 48,
    },
    "granitemoeshared": {"embedding_multiplier": 3.0, "shared_intermediate_size": 48},
    "hunyuan_v1_dense": {"head_dim": 16, "rope_parameters": _ROPE},
    "hunyuan_v1_moe": {"head_dim": 16, "rope_parameters": _ROPE, "moe_topk": 2},
    "jamba": {
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 16, "num_key_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"] * 2, "conv_L_cache": 3, "block_ff_dim": 96},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2, "num_dense_layers": 2},
    "lfm3": {},
    "llama4_text": {
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 8,
        "no_rope_layers": [1, 1, 0, 1, 1, 0],
        "interleave_moe_layer_step": 2,
    },
    "mamba": {"state_size": 8, "time_step_rank": 8},
    "mamba2": {**_MAMBA2},
    "modernbert-decoder": {"global_attn_every_n_layers": 3, "local_attention": 16},
    "mpt": {"n_heads": 4, "expansion_ratio": 2, "max_seq_len": 256, "attn_config": _MPT_ATTENTION},
    "nanochat": {},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "mamba", "moe", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 48,
        "use_mamba_kernels": False,
    },
    "olmoe": {},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "opt-projected": {"word_embed_proj_dim": 32, "ffn_dim": 96, "do_layer_norm_before": False},
    "persimmon": {"head_dim": None},
    "phimoe": {},
    "stablelm": {},
    "xglm": {"attention_heads": 4, "ffn_dim": 96},
}

# Rows of the parity matrix.
MORE: list[str] = sorted(SETTINGS)


def model_type(name: str) -> str:
    """Of which family a row is."""
    return name if name in CONFIG_MAPPING else name.split("-")[0]


def make(name: str, folder: Path) -> None:
    """Write the row's small checkpoint."""
    write(folder, shrunken(model_type(name), SETTINGS[name]))
