"""Which node loads what: compares the desired models with the assignments and returns decisions. Pure.

Applied again and again to a world in which nodes do as told, it comes to rest: a world at rest gives no decision.
"""

from dataclasses import dataclass, field
from random import Random

from stagemesh.revisions import rolls_out, specs_of
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord

from .board import Board, Decision, count_on
from .placement import choose_node, current_of, fits, new_assignment, stale_of, why_not
from .world import History, World, bytes_needed, is_current


@dataclass(frozen=True)
class Patience:
    """How long to wait before acting, in seconds."""

    # A node without a record keeps its assignments this long: after an outage of etcd all records come back.
    node_grace_s: float = 5.0
    # A failed replica stays this long, doubled with every further failure of its stage up to the limit.
    failed_backoff_s: float = 1.0
    failed_backoff_limit_s: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What to do now, and what cannot be done: per model, one line for each replica without a node."""

    decisions: list[Decision] = field(default_factory=list)
    pending: dict[str, list[str]] = field(default_factory=dict)


def decide(world: World, history: History, patience: Patience, now: float, rng: Random) -> Plan:
    """Return the plan for this world. `history` is `observe(...)` of it at `now`; `rng` makes replica ids."""
    board = Board(world)
    _remove_hopeless(board, history, patience, now)
    for spec in world.specs():
        _remove_surplus(board, spec)
    for _, spec in sorted(world.models.items()):
        _remove_stale(board, spec)
    pending = _place_missing(board, history, rng)
    for name, spec in sorted(world.models.items()):
        if name not in pending and not rolls_out(spec):
            _spread(board, history, spec, rng)
    return Plan(board.decisions, pending)


def failed_backoff_s(failures: int, patience: Patience) -> float:
    """How long a failed replica stays when its stage failed `failures` times."""
    return min(patience.failed_backoff_limit_s, patience.failed_backoff_s * 2.0 ** min(failures - 1, 30))


def _remove_hopeless(board: Board, history: History, patience: Patience, now: float) -> None:
    for replica_id, held in sorted(board.held.items()):
        spec = board.world.models.get(held.model)
        absent_since = history.absent_since.get(held.node_id)
        failed_since = history.failed_since.get(replica_id)
        if spec is None:
            board.unassign(held, "the model is not deployed")
        elif absent_since is not None and now - absent_since >= patience.node_grace_s:
            board.unassign(held, f"node {held.node_id} is gone")
        elif board.world.failed(held) and board.world.spec_of(held) is None:
            board.unassign(held, "it failed, and its revision is no longer wanted")
        elif failed_since is not None:
            backoff_s = failed_backoff_s(history.failures_of(held), patience)
            if now - failed_since >= backoff_s:
                board.unassign(held, f"it failed {backoff_s:.0f} s ago")


def _remove_surplus(board: Board, spec: ModelSpec) -> None:
    """Remove replicas beyond the wanted count, and those on draining nodes once they are replaced."""
    for stage in range(len(spec.partitions)):
        wanted = board.world.wanted(spec, stage)
        staying, leaving = current_of(board, spec, stage)
        ready = sum(map(board.world.ready, staying))
        if ready >= wanted:
            for held in leaving:
                board.unassign(
                    held,
                    f"node {held.node_id} drains, or is in no zone of the model, and the replica is replaced",
                )
        while len(staying) > wanted:
            victim = max(staying, key=lambda held: _removal_order(board, staying, held))
            # A replica that serves goes only when enough others serve without it.
            if board.world.ready(victim) and ready - 1 < wanted:
                break
            ready -= board.world.ready(victim)
            staying.remove(victim)
            board.unassign(victim, f"stage {stage} has more than {wanted} replicas")


def _removal_order(board: Board, stage: list[Assignment], held: Assignment) -> tuple[int | bool | str, ...]:
    """Greatest goes first: on an absent node, failed, with a stand-in, doubled or crowded on its node, not ready."""
    return (
        held.node_id not in board.world.nodes,
        board.world.failed(held),
        any(other.replaces == held.replica_id for other in stage),
        count_on(held.node_id, stage),
        len(board.on(held.node_id)) > 1,
        not board.world.ready(held),
        len(board.on(held.node_id)),
        held.replica_id,
    )


def _remove_stale(board: Board, spec: ModelSpec) -> None:
    """Remove replicas of an older revision or other cuts once every stage of the wanted one serves."""
    stale = stale_of(board, spec)
    if not stale:
        return
    for stage in range(len(spec.partitions)):
        if not board.world.wanted(spec, stage):
            continue  # it sleeps: nobody waits for the newer one, nor for this one
        current = [held for held in board.of(spec.name, stage) if is_current(spec, held)]
        serving = sum(map(board.world.ready, current))
        if serving == 0 or serving + sum(map(board.world.failed, current)) < len(current):
            return
    for held in stale:
        board.unassign(held, "what is wanted serves, and this is not of it")


def _place_missing(board: Board, history: History, rng: Random) -> dict[str, list[str]]:
    """Give every missing replica a node; first replicas before second ones, large partitions before small.

    What is deployed comes before candidates, so that these take no memory from what serves.
    """
    missing: list[tuple[bool, int, int, str, int]] = []
    for spec in board.world.specs():
        candidate = spec is not board.world.models[spec.name]
        for stage, partition in enumerate(spec.partitions):
            staying, _ = current_of(board, spec, stage)
            missing += [
                (candidate, nth, -partition.parameter_bytes, spec.name, stage)
                for nth in range(len(staying), board.world.wanted(spec, stage))
            ]
    pending: dict[str, list[str]] = {}
    for candidate, nth, _, name, stage in sorted(missing):
        spec = specs_of(board.world.models[name])[candidate]
        node = choose_node(board, history, spec, stage)
        # The first of a candidate may take the place of what the deployed one's last route can spare.
        if node is None and (nth == 0 or not candidate):
            node = _make_room(board, history, spec, stage)
        if node is None:
            pending.setdefault(name, []).append(why_not(board, spec, stage, nth))
        else:
            scale = board.world.scales.get(name)
            trace = scale.traceparent if scale is not None else ""
            board.assign(new_assignment(spec, stage, node, rng, trace), f"stage {stage} lacks a replica")
    return pending


def _make_room(board: Board, history: History, spec: ModelSpec, stage: int) -> NodeRecord | None:
    """Take away replicas of the model's older revision that its last route can spare, if that makes room."""
    for node in board.usable_nodes():
        need = bytes_needed(spec, spec.partitions[stage], node)
        spare = [held for held in _spare(board, spec) if held.node_id == node.node_id]
        room = sum(board.needed_bytes(held, node) for held in spare)
        if not spare or board.free_bytes(node) + room < need:
            continue
        for held in spare:
            if not fits(board, spec, stage, node):
                board.unassign(held, "it makes room for the newer revision")
        return choose_node(board, history, spec, stage)
    return None


def _spare(board: Board, spec: ModelSpec) -> list[Assignment]:
    """Replicas of other revisions, without one ready replica for each of their stages.

    A candidate's are never spare to what is deployed: whoever loses them, loses the rollout.
    """
    kept: set[tuple[str, int, int]] = set()
    spare: list[Assignment] = []
    deployed = spec is board.world.models.get(spec.name)
    others = [held for held in board.of(spec.name) if not is_current(spec, held)]
    for held in stale_of(board, spec) if deployed else others:
        place = (held.revision, held.stages, held.stage)
        if board.world.ready(held) and place not in kept:
            kept.add(place)
        else:
            spare.append(held)
    return spare


def _spread(board: Board, history: History, spec: ModelSpec, rng: Random) -> None:
    """Start one replica more where that parts two of a stage on one node, or gives an idle node work.

    The one that it stands in for goes when the new one is ready, as surplus.
    """
    for stage in range(len(spec.partitions)):
        staying, leaving = current_of(board, spec, stage)
        settled = len(staying) == board.world.wanted(spec, stage) and all(map(board.world.ready, staying))
        if leaving or not settled:
            continue
        homes = {held.node_id for held in staying}
        doubled = len(homes) < len(staying)
        # What scales itself is packed onto few nodes on purpose, and grows when it needs more.
        # A planner put what it placed where it is on purpose as well.
        free = not spec.HasField("scaling") and not spec.plan.stages
        crowded = free and any(len(board.on(node_id)) > 1 for node_id in homes)

        def suits(
            node: NodeRecord, stage: int = stage, homes: set[str] = homes, doubled: bool = doubled
        ) -> bool:
            fresh = node.node_id not in homes and history.failures_at(spec, stage, node.node_id) == 0
            return fresh and (doubled or not board.on(node.node_id))

        node = choose_node(board, history, spec, stage, suits) if doubled or crowded else None
        if node is not None:
            reason = f"stage {stage} is doubled on a node" if doubled else f"node {node.node_id} is idle"
            board.assign(new_assignment(spec, stage, node, rng), reason)
            return
