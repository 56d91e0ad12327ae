"""Emptying nodes, and how many there should be."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.scaling.capacity import Bounds, Capacity, missing_nodes
from stagemesh.services.registry.scaling.packing import (
    BUSY_LIMIT,
    Box,
    Consolidator,
    Move,
    Piece,
    advance,
    consolidate,
    relieve,
)


def box(node_id: str, *pieces: tuple[str, int, int, float], memory: int = 100, movable: bool = True) -> Box:
    """A node; each piece is model, stage, bytes, busy."""
    held = tuple(
        Piece(f"{node_id}/{nth}", model, stage, nbytes, busy, movable)
        for nth, (model, stage, nbytes, busy) in enumerate(pieces)
    )
    return Box(
        node_id, memory, held, memory - sum(each.nbytes for each in held), sum(each.busy for each in held)
    )


def anywhere(piece: Piece, node_id: str) -> int | None:
    return piece.nbytes


def places(moves: list[Move]) -> list[tuple[str, str, str]]:
    return [(move.piece.replica_id, move.source, move.target) for move in moves]


def test_the_least_used_node_is_emptied_onto_the_one_it_fills_best() -> None:
    boxes = [
        box("a", ("x", 0, 20, 0.1)),
        box("b", ("y", 0, 60, 0.1)),
        box("c", ("z", 0, 40, 0.1)),
        box("d"),
    ]
    # b has 40 left, c 60: b is filled better. d is empty and stays so.
    assert places(consolidate(boxes, anywhere)) == [("a/0", "a", "b")]


def test_a_node_is_begun_only_when_all_of_it_finds_room() -> None:
    boxes = [box("a", ("x", 0, 30, 0.0), ("y", 0, 30, 0.0)), box("b", ("z", 0, 65, 0.0))]
    assert consolidate(boxes, anywhere) == []
    boxes[1] = box("b", ("z", 0, 40, 0.0))
    assert {move.piece.replica_id for move in consolidate(boxes, anywhere)} in (
        {"a/0", "a/1"},
        {"b/0"},
    )


def test_what_does_not_scale_itself_stays_and_keeps_its_node() -> None:
    boxes = [box("a", ("x", 0, 10, 0.0), movable=False), box("b", ("y", 0, 50, 0.0))]
    assert places(consolidate(boxes, anywhere)) == [("b/0", "b", "a")]


def test_two_replicas_of_a_stage_are_not_put_together() -> None:
    boxes = [box("a", ("x", 0, 10, 0.0)), box("b", ("x", 0, 10, 0.0))]
    assert consolidate(boxes, anywhere) == []


def test_nodes_that_have_enough_to_do_are_neither_emptied_nor_filled() -> None:
    boxes = [box("a", ("x", 0, 10, 0.3)), box("b", ("y", 0, 10, 0.3))]
    assert consolidate(boxes, anywhere) == []
    boxes = [box("a", ("x", 0, 10, 0.6)), box("b", ("y", 0, 10, 0.0))]
    assert consolidate(boxes, anywhere) == []


def test_a_node_where_it_may_not_be_is_passed_over() -> None:
    boxes = [box("a", ("x", 0, 10, 0.0)), box("b", ("y", 0, 50, 0.0)), box("c", ("z", 0, 40, 0.0))]
    assert places(consolidate(boxes, lambda piece, node: None if node == "b" else piece.nbytes)) == [
        ("a/0", "a", "c")
    ]


pieces = st.tuples(
    st.sampled_from("xyz"), st.integers(0, 2), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.3])
)


@st.composite
def meshes(draw: st.DrawFn) -> list[Box]:
    boxes = []
    for nth in range(draw(st.integers(1, 8))):
        held: list[tuple[str, int, int, float]] = []
        for piece in draw(st.lists(pieces, max_size=4)):
            if sum(each[2] for each in held) + piece[2] <= 100 and piece[:2] not in {e[:2] for e in held}:
                held.append(piece)
        boxes.append(box(f"n{nth}", *held, movable=draw(st.booleans())))
    return boxes


@settings(max_examples=300, deadline=None)
@given(meshes(), st.integers(1, 4))
def test_moves_fit_empty_whole_nodes_and_lose_nothing(boxes: list[Box], most: int) -> None:
    moves = consolidate(boxes, anywhere, most_nodes=most)
    by_id = {each.node_id: each for each in boxes}
    sources = {move.source for move in moves}
    targets = {move.target for move in moves}
    assert len(sources) <= most
    assert not sources & targets
    assert all(by_id[target].pieces for target in targets)
    for source in sources:
        moved = {move.piece.replica_id for move in moves if move.source == source}
        assert moved == {piece.replica_id for piece in by_id[source].pieces}
    for target in targets:
        arriving = [move.piece for move in moves if move.target == target]
        held = [*by_id[target].pieces, *arriving]
        assert sum(piece.nbytes for piece in held) <= 100
        assert len({(piece.model, piece.stage) for piece in held}) == len(held)
        assert sum(piece.busy for piece in held) <= BUSY_LIMIT + 1e-9
    assert all(move.piece.movable for move in moves)


@settings(max_examples=100, deadline=None)
@given(meshes())
def test_packing_comes_to_rest(boxes: list[Box]) -> None:
    for _ in range(len(boxes) + 1):
        moves = consolidate(boxes, anywhere)
        if not moves:
            return
        held = {each.node_id: list(each.pieces) for each in boxes}
        for move in moves:
            held[move.source].remove(move.piece)
            held[move.target].append(move.piece)
        boxes = [
            Box(node_id, 100, tuple(each), 100 - sum(p.nbytes for p in each), sum(p.busy for p in each))
            for node_id, each in held.items()
        ]
    raise AssertionError("it goes on and on")


def test_patience_waits_for_a_quiet_mesh_and_pauses_between_steps() -> None:
    consolidator = Consolidator(after_s=10, pause_s=20)
    boxes = [box("a", ("x", 0, 10, 0.0)), box("b", ("y", 0, 10, 0.0))]
    assert consolidator.decide(boxes, anywhere, settled=True, now=0) == []
    assert consolidator.decide(boxes, anywhere, settled=False, now=9) == []
    assert consolidator.decide(boxes, anywhere, settled=True, now=11) == []
    assert consolidator.decide(boxes, anywhere, settled=True, now=20) == []
    assert consolidator.decide(boxes, anywhere, settled=True, now=21)
    assert consolidator.decide(boxes, anywhere, settled=True, now=40) == []
    assert consolidator.decide(boxes, anywhere, settled=True, now=41)


def test_an_overloaded_node_gives_its_busiest_replica_to_an_empty_one() -> None:
    crowded = box("a", ("x", 0, 10, 0.4), ("y", 1, 10, 0.7))
    assert relieve([crowded, box("b", ("z", 0, 10, 0.0))], anywhere) is None
    found = relieve([crowded, box("b", ("z", 0, 10, 0.0)), box("c")], anywhere)
    assert found is not None
    assert (found.piece.model, found.source, found.target) == ("y", "a", "c")
    # One that is alone on its node has nobody to part from.
    assert relieve([box("a", ("x", 0, 10, 1.0)), box("c")], anywhere) is None


def test_so_many_nodes_more_as_what_is_pending_fills() -> None:
    assert missing_nodes([60, 50, 40, 30], 100) == 2
    assert missing_nodes([150], 100) == 1
    capacity = Capacity(Bounds(least=1, most=3))
    wish = capacity.decide([60, 60, 60], [100], 0, 0.0)
    assert wish is not None
    assert wish.nodes == 3
    assert "3 replicas of 180 bytes" in wish.reason
    # What was asked for and is on its way is not asked for again.
    assert capacity.decide([60, 60, 60], [100], 0, 1.0, starting=2) is None


def test_replicas_that_take_each_others_time_ask_for_one_node_more_once() -> None:
    capacity = Capacity(Bounds(least=1, most=3))
    wish = capacity.decide([], [100], 0, 0.0, crowded=True)
    assert wish is not None
    assert wish.nodes == 2
    assert "take each other's time" in wish.reason
    assert capacity.decide([], [100], 0, 1.0, crowded=True, starting=1) is None
    assert capacity.decide([], [100] * 3, 0, 2.0, crowded=True) is None


def test_the_last_used_node_moves_to_an_earlier_empty_one() -> None:
    boxes = [box("n-0", ("x", 0, 60, 0.0)), box("n-2"), box("n-10", ("y", 0, 60, 0.0)), box("n-11")]
    assert places(advance(boxes, anywhere)) == [("n-10/0", "n-10", "n-2")]
    assert advance([boxes[0], boxes[2]], anywhere) == []
    assert advance([boxes[1]], anywhere) == []
    stuck = box("n-10", ("y", 0, 60, 0.0), movable=False)
    assert advance([boxes[0], boxes[1], stuck], anywhere) == []
    assert advance(boxes, lambda piece, node: None) == []


def test_empty_nodes_go_after_a_while_but_for_the_spare_ones() -> None:
    capacity = Capacity(Bounds(least=1, most=5, spare=1, empty_after_s=60))
    memories = [100] * 5
    assert capacity.decide([], memories, 3, 0.0) is None
    # The fewest that were empty all the time are too many.
    assert capacity.decide([], memories, 2, 30.0) is None
    wish = capacity.decide([], memories, 3, 60.0)
    assert wish is not None
    assert wish.nodes == 4
    assert capacity.decide([], memories[:1], 1, 500.0) is None


def test_below_the_least_there_are_more() -> None:
    wish = Capacity(Bounds(least=2, most=5)).decide([], [100], 0, 0.0)
    assert wish is not None
    assert wish.nodes == 2
