"""Settings that a family's small configuration needs beside `build.SMALL`, by model type; and families left out."""

from typing import Any

# Latent attention: `qk_head_dim` is what the two parts of a query make together.
_LATENT = {"head_dim": 16, "qk_head_dim": 16, "num_key_value_heads": 4}

SETTINGS: dict[str, dict[str, Any]] = {}

# Cannot be built or compared here, and why.
UNSUPPORTED: dict[str, str] = {}
