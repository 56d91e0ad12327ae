"""Reference checkpoints: Llama-style, random weights of a fixed seed, made once and kept in a cache folder.

`STAGEMESH_BENCH_CACHE` names the folder; by default it is a folder of this user's among the temporary files.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

SEED = 20
CONTEXT = 4096
# Part of the folder's name: raise it when what is written changes.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


SHAPES = {
    # Almost no compute: what is left is everything around it.
    "micro": Shape(hidden=64, layers=4, heads=4, kv_heads=2, intermediate=128, vocab=256),
    "tiny": Shape(hidden=512, layers=8, heads=8, kv_heads=4, intermediate=1408, vocab=4096),
    "small": Shape(hidden=1024, layers=16, heads=16, kv_heads=8, intermediate=2816, vocab=8192),
}


def checkpoint(name: str) -> Path:
    """Folder of the fp32 checkpoint `name` of `SHAPES`; written at the first call. Blocks for seconds then."""
    folder = _cache() / f"{name}-v{_VERSION}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        making = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
        try:
            _write(SHAPES[name], making)
            making.rename(folder)
        except OSError:
            if not folder.exists():  # else another run was faster
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _cache() -> Path:
    given = os.environ.get("STAGEMESH_BENCH_CACHE")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"stagemesh-bench-{os.getuid()}"


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
