"""A plan that may be served: where nothing certifies a split, the planner is held to one stage. Pure."""

from collections.abc import Mapping

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import FailedPrecondition
from stagemesh.v1.registry_pb2 import DeployRequest, PlacementPlan

from .certified import check_certified
from .planned import Placed, plan_deployment
from .world import World


def plan_certified(
    request: DeployRequest,
    checkpoint: Checkpoint,
    name: str,
    wish: PlacementPlan,
    world: World,
    unix_ms: int,
    busy: Mapping[str, float] | None = None,
) -> Placed:
    """The planner's decision, made at `unix_ms`, on nodes that are `busy` for others. Raises what `planned.plan_deployment` and `check_certified` do."""
    found = plan_deployment(checkpoint, name, request.dtype, request.zones, wish, world, busy)
    try:
        check_certified(request, checkpoint, len(found.cuts))
    except FailedPrecondition as error:
        if wish.fixed_stages or len(found.cuts) == 1:
            raise
        whole = PlacementPlan()
        whole.CopyFrom(wish)
        whole.fixed_stages = 1
        found = plan_deployment(checkpoint, name, request.dtype, request.zones, whole, world, busy)
        found.record.fixed_stages = 0
        found.record.why.insert(0, f"one stage: {error.message}")
    found.record.unix_ms = unix_ms
    return found
