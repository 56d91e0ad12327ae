"""Which answers are decided by the model, and which by the last bits of a sum.

A replay computes in one chunk what came token by token before, and a batch of another size adds up in another order: fp32
logits differ in their last bits. A token differs with them only where two candidates are that close, once in
some thousand sampled tokens; no recovery can be blamed for that one. So the suite asks for answers that no such noise can change.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from stagemesh.services.stage.sampler import distribution, uniform
from transformers import LlamaForCausalLM
from transformers.utils import logging

from stagemesh.v1.stage_pb2 import Sampling

from .load import TEMPERATURE, TOP_K, Place

# Chunks and steps were seen to differ by 1.2e-4 in one logit of a hundred thousand, by far less in most.
NOISE = 3e-4


@torch.inference_mode()
def decided(folder: Path, answers: Mapping[Place, list[int]]) -> set[Place]:
    """Places whose every token stays the same while each logit moves by less than `NOISE`."""
    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {place for place, tokens in answers.items() if _clear(model, place, tokens)}


def _clear(model: LlamaForCausalLM, place: Place, tokens: list[int]) -> bool:
    ids = torch.tensor([place.prompt + tokens[:-1]])
    logits = model(ids).logits[0, len(place.prompt) - 1 :]
    if place.greedy:
        best = logits.topk(2, dim=-1).values
        return bool((best[:, 0] - best[:, 1]).min() > 2 * NOISE)
    sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K, seed=place.seed)
    edge = logits.topk(TOP_K + 1, dim=-1).values[:, -2:]
    if float((edge[:, 0] - edge[:, 1]).min()) < 2 * NOISE:
        return False
    for at, row in enumerate(logits):
        weights = distribution(row, sampling)
        edges = weights.cumsum(dim=-1) / weights.sum()
        # A cumulative probability moves by at most half of what the scaled logits do.
        distance = (edges - uniform(place.seed, len(place.prompt) + at)).abs().min()
        if float(distance) < NOISE / TEMPERATURE / 2:
            return False
    return True
