"""What single families of language models need beside their pipeline plan, one small class each."""

from transformers import PreTrainedConfig

from .falcon_h1 import FalconH1
from .longcat import Longcat
from .minimax import MiniMax
from .per_layer import AlternatingStreams, PerLayerInputs
from .plain import Family
from .scans import Scans
from .streams import Streams

__all__ = ["Family", "family_of"]

_FAMILIES: dict[str, type[Family]] = {
    "deepseek_v4": Streams,
    "falcon_h1": FalconH1,
    "falcon_mamba": Scans,
    "gemma3n_text": AlternatingStreams,
    "gemma4_text": PerLayerInputs,
    "hy_v4": Streams,
    "jamba": Scans,
    "longcat_flash": Longcat,
    "mamba": Scans,
    "minimax": MiniMax,
}


def family_of(config: PreTrainedConfig) -> Family:
    """The adapter of a model type; most need none and get the plain one."""
    return _FAMILIES.get(config.model_type, Family)(config)
