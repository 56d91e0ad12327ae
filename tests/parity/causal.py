"""Every causal language model of the installed transformers that has a pipeline plan, of it or of ours."""

from pathlib import Path

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .build import shrunken, write
from .causal_settings import SETTINGS


def published() -> list[str]:
    """Model types with a plan that transformers publishes."""
    return sorted(
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name in CONFIG_MAPPING and getattr(CONFIG_MAPPING[name], "base_model_pp_plan", None)
    )


def make(model_type: str, folder: Path) -> None:
    """Write the family's small checkpoint."""
    write(folder, shrunken(model_type, SETTINGS.get(model_type, {})))
