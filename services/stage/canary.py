"""The canary: a session of one prefill and one decode step through the replica's own engine and pool.

A replica is ready only after it: loaded is not the same as able to compute.
"""

import time

import torch

from stagemesh.errors import FailedPrecondition

from .partition.interface import Partition
from .partition.ragged import Segment
from .replica import Replica

PREFILL_TOKENS = 4


async def probe(replica: Replica, again: bool = False) -> float:
    """Run the canary; return milliseconds of one single-token step.

    Args:
        replica: not ready yet.
        again: its partition served before, and has kept its weights: the single-token step alone.

    Raises:
        FailedPrecondition: what came out is not finite or has the wrong shape.
        ResourceExhausted: the KV budget does not hold even the canary.
    """
    model = replica.model
    kv = replica.pool.reserve(PREFILL_TOKENS + 1) if model.generates else None
    try:
        position = PREFILL_TOKENS if model.generates and not again else 0
        if not again:
            await replica.engine.run(lambda: _step(model, Segment(0, PREFILL_TOKENS, 0, kv)))
        started = time.perf_counter()
        await replica.engine.run(lambda: _step(model, Segment(0, 1, position, kv)))
        return (time.perf_counter() - started) * 1000
    finally:
        if kv is not None:
            replica.pool.release(kv)


def _step(model: Partition, segment: Segment) -> None:
    out = model.forward(model.probe([segment])).hidden
    if out.is_floating_point() and not bool(torch.isfinite(out).all()):
        raise FailedPrecondition("the canary's hidden states are not finite: the weights cannot be used")
    if model.is_last and model.generates:
        logits = model.logits(out)
        if logits.shape[0] != segment.rows or not bool(torch.isfinite(logits).all()):
            raise FailedPrecondition("the canary's logits are not finite: the weights cannot be used")
