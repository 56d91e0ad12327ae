"""What a replica has to do now, as routers and the registry are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemesh.prefix import BLOCK
from stagemesh.v1.stage_pb2 import ReplicaLoad

from .load_report import Totals
from .pass_costs import PassCosts

if TYPE_CHECKING:
    from .replica import Replica


def load_of(replica: Replica, costs: PassCosts) -> ReplicaLoad:
    """For routers: what waits, what passes take, and the room that is left."""
    return ReplicaLoad(
        replica_id=replica.replica_id,
        queue_depth=replica.engine.waiting,
        sessions=len(replica.sessions),
        step_ms=replica.engine.step_ms,
        kv_bytes_used=replica.pool.used_bytes,
        kv_bytes_total=replica.pool.budget_bytes,
        prompt_tokens=replica.prompt_tokens(),
        prompt_token_us=costs.token_us,
        decode_ms=costs.decode_us / 1000,
        kv_tokens_free=replica.pool.blocks.free * BLOCK,
    )


def totals_of(replica: Replica) -> Totals:
    """For the registry: what it did since it was loaded, and what it holds now."""
    engine, waits, budget = replica.engine, replica.step_waits, replica.pool.budget_bytes
    return Totals(
        engine.passes,
        engine.queued_us,
        engine.computed_us,
        waits.steps,
        waits.waited_us,
        kv=replica.pool.used_bytes / budget if budget else 0.0,
        running=len(replica.sessions),
        waiting=waits.waiting,
    )
