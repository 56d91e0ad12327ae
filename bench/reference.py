"""The other side of a comparison: the whole model in this process, through transformers alone."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

THREADS = 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _Clock(StoppingCriteria):
    """Stops nothing; notes when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Reference:
    """A checkpoint as transformers runs it, with two threads."""

    def __init__(self, folder: Path, dtype: str) -> None:
        torch.set_num_threads(THREADS)
        logging.disable_progress_bar()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()

    def decode(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[int]]]:
        """Greedy tokens of prompts of one length, and tokens per second after the first of each."""
        clock = _Clock()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=1
                ),
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        rate = len(prompts) * (len(clock.times) - 1) / (clock.times[-1] - clock.times[0])
        return rate, out[:, ids.shape[1] :].tolist()

    def forward(self, rows: list[list[int]]) -> tuple[float, Any]:
        """Seconds of one stateless forward, and its logits `[rows, positions, vocab]` as an array."""
        ids = torch.tensor(rows)
        started = time.perf_counter()
        with torch.inference_mode():
            logits = self._model(input_ids=ids, use_cache=False).logits
        return time.perf_counter() - started, logits.numpy()
