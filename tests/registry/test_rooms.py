"""The choice among arrays is the choice that the rule, said plainly, makes; and the board's indexes are what a scan finds."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.board import Board
from stagemesh.services.registry.placement import (
    choose_node,
    current_of,
    fits,
    keeps,
    new_assignment,
    planned_nodes,
)
from stagemesh.services.registry.world import History, World, bytes_needed

from stagemesh.v1.registry_pb2 import Assignment, KeptPartition, ModelSpec, NodeRecord, Partition

NODES = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["cpu", "cuda"]),
        st.sampled_from(["a", "b"]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)
HELD = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 1), st.integers(0, 1)), max_size=12)


def spec(name: str, zones: list[str]) -> ModelSpec:
    parts = [Partition(first_layer=nth, end_layer=nth + 1, parameter_bytes=4 + nth) for nth in range(2)]
    return ModelSpec(
        name=name, revision="r-1", partitions=parts, replicas=[2, 2], checkpoint_dtype="BF16", zones=zones
    )


@given(
    NODES, HELD, st.sampled_from([[], ["a"], ["c"]]), st.lists(st.integers(0, 11), max_size=4), st.randoms()
)
@settings(deadline=None)
def test_the_best_node_is_the_one_of_the_plain_rule(drawn, held, zones, failed, random) -> None:
    kept = KeptPartition(checkpoint="r", first_layer=0, end_layer=1)
    nodes = {
        f"n{nth:02}": NodeRecord(
            node_id=f"n{nth:02}",
            memory_bytes=memory,
            device=device,
            zone=zone,
            draining=drains,
            keeps=[kept] if keeping else [],
        )
        for nth, (memory, device, zone, drains, keeping) in enumerate(drawn)
    }
    models = {name: spec(name, zones) for name in ("m0", "m1")}
    if random.random() < 0.3:
        models["m0"].plan.stages.add(nodes=["n01", "n03"])
    assignments: dict[str, Assignment] = {}
    rng = Random(1)
    board = Board(World(models, nodes, assignments, {}))
    history = History(failures={("m0", "r-1", 0): {f"n{nth:02}": nth % 3 for nth in failed}})
    board.rooms  # noqa: B018 (made early: it has to follow)
    for where, model, stage in held:
        node = NodeRecord(node_id=f"n{where:02}")
        board.assign(new_assignment(models[f"m{model}"], stage, node, rng), "drawn")
    for assignment in random.sample(sorted(board.held), len(board.held) // 3):
        board.unassign(board.held[assignment], "drawn")
    for suits in (None, lambda node: node.node_id[-1] in "02468"):
        for stage in (0, 1):
            found = choose_node(board, history, models["m0"], stage, suits)
            assert found == plainly(board, history, models["m0"], stage, suits or (lambda node: True))


def plainly(board, history, wanted, stage, suits):
    staying, _ = current_of(board, wanted, stage)
    held = list(board.held.values())

    def order(node):
        own = [each for each in held if each.node_id == node.node_id]
        free = node.memory_bytes - sum(board.needed_bytes(each, node) for each in own)
        need = bytes_needed(wanted, wanted.partitions[stage], node)
        return (
            sum(each.node_id == node.node_id for each in staying),
            history.failures_at(wanted, stage, node.node_id),
            node.node_id not in planned_nodes(wanted, stage),
            not keeps(node, wanted, stage),
            round(1 - (free - need) / node.memory_bytes, 2),
            len(own),
            -free,
            node.node_id,
        )

    fitting = [
        node
        for node in board.world.nodes.values()
        if not node.draining and suits(node) and fits(board, wanted, stage, node)
    ]
    return min(fitting, key=order, default=None)


@given(HELD)
def test_the_boards_indexes_are_what_a_scan_finds(drawn) -> None:
    models = {name: spec(name, []) for name in ("m0", "m1")}
    board = Board(World(models, {}, {}, {}))
    rng = Random(2)
    for where, model, stage in drawn:
        board.assign(new_assignment(models[f"m{model}"], stage, NodeRecord(node_id=f"n{where}"), rng), "")
    for replica_id in sorted(board.held)[::2]:
        board.unassign(board.held[replica_id], "")
    held = list(board.held.values())
    for model in models:
        assert board.of(model) == sorted((h for h in held if h.model == model), key=lambda h: h.replica_id)
        assert [h for stage in (0, 1) for h in board.of(model, stage)] == sorted(
            board.of(model), key=lambda h: (h.stage, h.replica_id)
        )
    for where in range(14):
        assert (
            board.count(f"n{where}")
            == len(board.on(f"n{where}"))
            == sum(h.node_id == f"n{where}" for h in held)
        )
