"""How far a partition's fast path strays from plain torch in bfloat16: greedy tokens, and the next token after the same.

In float32 the tokens are the same, which tests hold; in bfloat16 another order of additions moves logits by a few
thousandths, and where two tokens are that close the one or the other wins.
"""

import torch

from bench.checkpoints import SHAPES, checkpoint
from services.stage.partition.interface import Batch, Partition
from services.stage.partition.kv import KVPool
from services.stage.partition.load import load_partition
from services.stage.partition.ragged import Segment
from stagemesh.checkpoint import inspect

PROMPTS, TOKENS_IN = 8, 16


def agreement(model: str, dtype: str, new: int) -> dict[str, list[float]]:
    """Per prompt: shares of `new` tokens that are equal, and the largest difference of a logit.

    "greedy": each path goes on with its own tokens. "next": both are given plain torch's tokens. "logits": the
    largest absolute difference then.
    """
    folder, layers = checkpoint(model), SHAPES[model].layers
    fast, plain = (
        load_partition(folder, inspect(folder), task="generate", first=0, end=layers, dtype=dtype, fast=fast)
        for fast in (True, False)
    )
    generator = torch.Generator().manual_seed(9)
    prompts = torch.randint(2, SHAPES[model].vocab, (PROMPTS, TOKENS_IN), generator=generator)
    expected, wanted = _decode(plain, prompts, new, None)
    own, _ = _decode(fast, prompts, new, None)
    given, logits = _decode(fast, prompts, new, expected)
    return {
        "greedy": (own == expected).float().mean(dim=1).tolist(),
        "next": (given == expected).float().mean(dim=1).tolist(),
        "logits": (logits - wanted).abs().amax(dim=(1, 2)).tolist(),
    }


def _decode(
    part: Partition, prompts: torch.Tensor, new: int, forced: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens `[prompts, new]` and logits `[prompts, new, vocab]`; goes on with the `forced` tokens if given."""
    pool = KVPool(2**28, part.kv_layout)
    kvs = [pool.reserve(prompts.shape[1] + new) for _ in prompts]
    ids, position = prompts, 0
    tokens, logits = [], []
    for step in range(new):
        rows = ids.shape[1]
        segments = [Segment(row * rows, rows, position, kv) for row, kv in enumerate(kvs)]
        hidden = part.forward(Batch(segments, {"input_ids": ids.reshape(-1)})).hidden
        logits.append(part.logits(hidden[rows - 1 :: rows]))
        tokens.append(logits[-1].argmax(dim=1))
        ids, position = (tokens[-1] if forced is None else forced[:, step])[:, None], position + rows
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)
