"""Settings that a family's small configuration needs beside `build.SMALL`, by model type; and families left out.

None leaves a setting as the family has it. What makes a family special has to survive: layers of every type on
several stages, experts that are chosen, windows shorter than the longest sequence, layers that share keys and values.
"""

from typing import Any

_FULL, _SLIDING, _LINEAR, _INDEX = (
    "full_attention",
    "sliding_attention",
    "linear_attention",
    "indexed_attention",
)


def _mixed(often: str, seldom: str) -> list[str]:
    """Two types of layers, both in each half of the model, and stages of three that begin with either."""
    return [often, seldom, often, often, seldom, often]


_WINDOWS: dict[str, Any] = {"layer_types": _mixed(_SLIDING, _FULL)}
_RECURRENT: dict[str, Any] = {"layer_types": _mixed(_LINEAR, _FULL)}
_MLPS = ["dense", "sparse", "sparse", "dense", "sparse", "sparse"]
# Latent attention: `head_dim` is that of the rotary part alone, and follows from it.
_LATENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 4}
# Sparse attention by an index: with few heads in it many scores are 0, and which of them are taken is then arbitrary.
_INDEXED: dict[str, Any] = {**_LATENT, "index_n_heads": 24}
# The last layers take keys and values from earlier ones: 3 and 4 are whose they are.
_SHARED_KEYS: dict[str, Any] = {
    "num_hidden_layers": 8,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
    "num_kv_shared_layers": 3,
}
_SHARED_INDEX = {"indexer_types": ["full", "full", "shared", "full", "shared", "full"]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

SETTINGS: dict[str, dict[str, Any]] = {
    "afmoe": _WINDOWS,
    "axk1": _LATENT,
    "axk2": _INDEXED,
    "bailing_hybrid": {**_LATENT, **_RECURRENT},
    "beam": {**_WINDOWS, "mlp_layer_types": _MLPS},
    "cohere2": _WINDOWS,
    "cohere2_moe": _WINDOWS,
    "cohere_compass_text": {
        **_WINDOWS,
        "rope_parameters": {
            _FULL: None,
            _SLIDING: {**_ROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
        },
    },
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _INDEXED,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "layer_types": _mixed("compressed_sparse_attention", "heavily_compressed_attention"),
        "mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe", "hash_moe", "moe"],
        # Shorter than the sequences, or nothing would ever be compressed.
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "partial_rotary_factor": 0.5,
        "o_groups": 2,
        "o_lora_rank": 16,
        "index_n_heads": 24,
        "index_topk": 4,
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        **_WINDOWS,
    },
    "dots3_note_text": {
        "layer_types": _mixed(_INDEX, _SLIDING),
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 16,
        "index_n_heads": 24,
        "shared_experts_intermediate_size": 48,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 24,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "exaone4": _WINDOWS,
    "exaone_moe": {**_WINDOWS, "mlp_layer_types": _MLPS},
    "gemma3_text": _WINDOWS,
    "gemma3n_text": {**_SHARED_KEYS, "laurel_rank": 8, "activation_sparsity_pattern": [0.9, 0.0] * 4},
    "gemma4_text": {
        **_SHARED_KEYS,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_key_value_heads": 2,
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 48,
    },
    "gemma4_unified_text": {
        **_SHARED_KEYS,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_key_value_heads": 2,
    },
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": {**_INDEXED, **_SHARED_INDEX},
    "hy_v4": {**_INDEXED, **_SHARED_INDEX},
    "inkling_text": {
        "layer_types": _mixed("hybrid_sliding", "hybrid"),
        "mlp_layer_types": _MLPS,
        "sliding_window_size": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "rel_extent": 16,
        "logits_mup_width_multiplier": 1.0,
    },
    "kimi_linear": {**_LATENT, **_RECURRENT, "linear_head_dim": 16, "linear_num_heads": 4},
    "kolibri1": _WINDOWS,
    "laguna": {**_WINDOWS, "num_attention_heads_per_layer": [4, 8, 4, 4, 8, 4], "mlp_layer_types": _MLPS},
    "longcat_flash": {
        **_LATENT,
        "head_dim": 8,
        "num_hidden_layers": None,
        "num_layers": 6,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 48,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "mellum": {**_WINDOWS, "mlp_layer_types": _MLPS},
    "mimo_v2_flash": {**_WINDOWS, "mlp_layer_types": _MLPS},
    "minimax_m3_vl_text": {
        "layer_types": _mixed("minimax_m3_sparse", _FULL),
        "mlp_layer_types": _MLPS,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 48,
        "rotary_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "minicpm3": _LATENT,
    "ministral": {**_WINDOWS, "head_dim": 16},
    "olmo3": _WINDOWS,
    "olmo_hybrid": _RECURRENT,
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "crop_size": 56,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8,
            "bias_max_distance": 10,
        },
    },
    "qwen2_moe": {**_WINDOWS, "use_sliding_window": True},
    "qwen3_5_moe_text": _RECURRENT,
    "qwen3_5_text": _RECURRENT,
    "qwen3_next": _RECURRENT,
    # The model library sets the padding token's row to zero after loading, whatever the checkpoint says.
    "youtu": {**_LATENT, "pad_token_id": None},
}

# Cannot be built or compared here, and why.
UNSUPPORTED: dict[str, str] = {
    "hrm_text": "each token goes several times, in turns, through both of its stacks of layers: a slice of its layers "
    "is no stage of a pipeline",
}
