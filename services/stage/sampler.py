"""Choosing a token from logits, reproducibly.

The random number of a token is a pure function of (seed, position): the counter-based generator Philox4x64
(Salmon et al., SC'11) with the seed as its key and the position as its counter. So a session continues with
the tokens it would have had, on whatever replica, in whatever batch.
"""

import numpy as np
import torch

from stagemesh.v1.stage_pb2 import Sampling, Token, TokenAlternative


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def choose(logits: torch.Tensor, sampling: Sampling, position: int) -> Token:
    """Choose the token for `position` from its logits.

    Args:
        logits: float32 `[vocab]`.
        sampling: temperature 0 is greedy; filters apply in the order top-k, top-p, min-p.
        position: of the new token in its sequence, prompt included.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the model produced logits that are not finite")
    chosen = int(logits.argmax()) if sampling.temperature == 0 else _sample(logits, sampling, position)
    token = Token(id=chosen, position=position)
    if sampling.logprobs:
        logs = torch.log_softmax(logits.double(), dim=-1)
        token.logprob = float(logs[chosen])
        top = logs.topk(min(sampling.logprobs, logs.shape[0]))
        token.alternatives.extend(
            TokenAlternative(id=int(i), logprob=float(v))
            for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
    return token


def _sample(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    scaled = logits.double().cpu() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[0]:
        floor = scaled.topk(sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    probs = torch.softmax(scaled, dim=-1)
    if 0 < sampling.top_p < 1:
        ordered, order = probs.sort(descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        probs[order[beyond]] = 0.0
    if sampling.min_p > 0:
        probs[probs < sampling.min_p * probs.max()] = 0.0
    cumulative = probs.cumsum(dim=-1)
    point = uniform(sampling.seed, position) * float(cumulative[-1])
    chosen = int(torch.searchsorted(cumulative, point, right=True))
    return min(chosen, int(torch.nonzero(probs)[-1]))
