"""What the whole model says, in this process, through transformers alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

NEW = 64
TEXTS = [
    "The cat sat on the mat.",
    "Distributed inference is split over several machines, each of which holds a part of the model.",
    "no",
]


def prompts() -> list[list[int]]:
    """20 prompts of 1 to 39 tokens."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, 500, (1 + 2 * i,), generator=generator).tolist() for i in range(20)]


def greedy(folder: Path) -> list[list[int]]:
    """The `NEW` tokens that follow each prompt alone, in float32."""
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = []
    for prompt in prompts():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        tokens.append(out[0, len(prompt) :].tolist())
    return tokens


def embeddings(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Mean-pooled, normalised embeddings `[texts, dimension]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    mask = inputs.attention_mask.unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1).numpy()
