"""Choosing a token from logits, reproducibly.

The random number of a token is a pure function of (seed, position): the counter-based generator Philox4x64
(Salmon et al., SC'11) with the seed as its key and the position as its counter. So a session continues with
the tokens it would have had, on whatever replica, in whatever batch.
"""

import numpy as np
import torch

from stagemesh.v1.stage_pb2 import Sampling, Token, TokenAlternative

from .history import History


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def choose(logits: torch.Tensor, sampling: Sampling, position: int, history: History | None = None) -> Token:
    """Choose the token for `position` from its logits.

    The order of things is that of transformers and vLLM: bias and held ids, repetition penalty, frequency and
    presence penalty; then the largest at temperature 0, else temperature, top-k, top-p, min-p.

    Args:
        logits: float32 `[vocab]`; left as they are.
        sampling: its ids are below `vocab`.
        position: of the new token in its sequence, prompt included.
        history: what comes before `position`; needed where `needs_history(sampling)`.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the model produced logits that are not finite")
    scores = penalised(hold(logits, sampling, position), sampling, history)
    chosen = int(scores.argmax()) if sampling.temperature == 0 else _sample(scores, sampling, position)
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


def hold(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Logits with the bias added, and without the ids that may not come yet; `logits` itself if nothing changes."""
    if sampling.logit_bias:
        logits = logits.clone()
        ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
    if sampling.held_ids and position < sampling.held_before:
        held = logits.clone()
        held[torch.tensor(sampling.held_ids, device=logits.device)] = -torch.inf
        if bool(torch.isfinite(held).any()):  # with nothing else to say, the end may come early
            return held
    return logits


def penalised(logits: torch.Tensor, sampling: Sampling, history: History | None) -> torch.Tensor:
    """Logits with the penalties of what is in `history`; `logits` itself if nothing changes."""
    if history is None:
        return logits
    scores = logits.clone()
    if (penalty := sampling.repetition_penalty) and (seen := history.seen):
        ids = torch.tensor(seen, device=scores.device)
        before = scores[ids]
        scores[ids] = torch.where(before < 0, before * penalty, before / penalty)
    if (sampling.frequency_penalty or sampling.presence_penalty) and history.generated:
        ids = torch.tensor(list(history.generated), device=scores.device)
        counts = torch.tensor(list(history.generated.values()), dtype=scores.dtype, device=scores.device)
        scores[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    return scores


def distribution(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Weights, float64 `[vocab]` on the CPU, of the tokens that temperature and filters leave; not normalised."""
    scaled = scores.double().cpu() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[0]:
        floor = scaled.topk(sampling.top_k).values[-1]
        equal = torch.nonzero(scaled == floor).flatten()
        room = sampling.top_k - int((scaled > floor).sum())
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
        scaled[equal[room:]] = -torch.inf  # of equals the first ones stay, as the greedy choice has it
    probs = torch.softmax(scaled, dim=-1)
    if 0 < sampling.top_p < 1:
        ordered, order = probs.sort(descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        probs[order[beyond]] = 0.0
    if sampling.min_p > 0:
        probs[probs < sampling.min_p * probs.max()] = 0.0
    return probs


def _sample(scores: torch.Tensor, sampling: Sampling, position: int) -> int:
    probs = distribution(scores, sampling)
    cumulative = probs.cumsum(dim=-1)
    point = uniform(sampling.seed, position) * float(cumulative[-1])
    chosen = int(torch.searchsorted(cumulative, point, right=True))
    return min(chosen, int(torch.nonzero(probs)[-1]))
