"""Settings that a family's small configuration needs beside `build.SMALL`, by model type; and families left out.

None leaves a setting as the family has it. What makes a family special has to survive: layers of every type on
several stages, experts that are chosen, windows shorter than the longest sequence, layers that share keys and values.
"""

from typing import Any

# Latent attention: `head_dim` is that of the rotary part alone, and follows from it.
_LATENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 4}
# Sparse attention by an index: with few heads in it many scores are 0, and which of them are taken is then arbitrary.
_INDEXED: dict[str, Any] = {**_LATENT, "index_n_heads": 24}
_FULL, _SLIDING = "full_attention", "sliding_attention"

SETTINGS: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _INDEXED,
    "cohere_compass_text": {},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _INDEXED,
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "max_window_layers": 2,
    },
    "dots3_note_text": {},
    "gemma3n_text": {
        "num_hidden_layers": 8,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
        "num_kv_shared_layers": 3,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "num_hidden_layers": 8,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
        "num_kv_shared_layers": 3,
        "head_dim": 16,
        "global_head_dim": 32,
    },
    "gemma4_unified_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _FULL],
        "head_dim": 16,
        "global_head_dim": 32,
    },
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": {
        **_INDEXED,
        "indexer_types": ["full", "full", "shared", "full", "shared", "full"],
    },
    "hy_v4": {**_INDEXED, "indexer_types": ["full", "full", "shared", "full", "shared", "full"]},
    "longcat_flash": _LATENT,
    "ministral": {"head_dim": 16},
    # The model library sets the padding token's row to zero after loading, whatever the checkpoint says.
    "youtu": {**_LATENT, "pad_token_id": None},
}

# Cannot be built or compared here, and why.
UNSUPPORTED: dict[str, str] = {}
