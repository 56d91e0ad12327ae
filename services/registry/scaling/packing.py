"""Fewer nodes for the same replicas: the least used nodes are emptied onto others; an overloaded one gives to an empty one. Pure.

Emptying one node is a bin packing of its replicas into the room that the others have left: largest first, each onto the node that
it fills best (best fit decreasing: D. S. Johnson et al., "Worst-case performance bounds for simple one-dimensional packing
algorithms", 1974). A node is only begun when a place is known for everything on it. Each move starts a stand-in
beside the replica, which goes when the stand-in is ready, so there is never less than before.
"""

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

# A node that computes that much of the time has enough to do.
BUSY_LIMIT = 0.5
# One on which replicas compute that much of the time together has more than it can do.
OVERLOAD = 0.9
_NUMBER = re.compile(r"(\d+)")
# Candidates looked at in one step, the least used first.
_TRIED = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """A replica on a node; `movable` when its model scales itself, and it serves."""

    replica_id: str
    model: str
    stage: int
    nbytes: int
    busy: float
    movable: bool


@dataclass(frozen=True, slots=True)
class Box:
    """A node that takes partitions, its memory in bytes, and what it holds; of `pieces` all memory set aside counts."""

    node_id: str
    memory: int
    pieces: tuple[Piece, ...]
    free: int
    busy: float


@dataclass(frozen=True, slots=True)
class Move:
    """Start a stand-in for the replica on another node."""

    piece: Piece
    source: str
    target: str
    reason: str


Allowed = Callable[[Piece, str], int | None]
"""Bytes that the piece needs on a node, None where it may not be."""


@dataclass(slots=True)
class _Left:
    """A target while moves are planned."""

    box: Box
    free: int
    busy: float
    stages: set[tuple[str, int]]


def consolidate(
    boxes: Sequence[Box], allowed: Allowed, *, most_nodes: int = 1, keep: Collection[str] = ()
) -> list[Move]:
    """Moves that empty up to `most_nodes` nodes; empty when no node can be emptied.

    Args:
        boxes: the nodes; those without pieces are no targets.
        allowed: says what a piece needs on a node.
        most_nodes: nodes emptied in one step.
        keep: nodes that are not to be emptied, because they failed at that lately, say.
    """
    used = [box for box in boxes if box.pieces]
    left = {box.node_id: _left(box) for box in used}
    # By free bytes, so that the best fit is the first that is large enough.
    by_free = sorted((each.free, node_id) for node_id, each in left.items())
    candidates = [box for box in used if box.node_id not in keep and _may_empty(box)]
    # Of nodes alike the one with the last name: whoever counts nodes up takes that one away first.
    candidates.sort(key=lambda box: order_of(box.node_id), reverse=True)
    candidates.sort(key=lambda box: (sum(piece.nbytes for piece in box.pieces), box.busy))
    moves: list[Move] = []
    emptied = 0
    targets: set[str] = set()
    for box in candidates[:_TRIED]:
        if emptied >= most_nodes:
            break
        if box.node_id in targets:
            continue  # something was just moved there
        found = _empty(box, left, by_free, allowed)
        if found is None:
            continue
        emptied += 1
        targets.update(move.target for move in found)
        moves.extend(found)
        # What leaves takes its room with it: nothing is moved there any more.
        gone = left.pop(box.node_id)
        by_free.remove((gone.free, box.node_id))
    return moves


def relieve(boxes: Sequence[Box], allowed: Allowed) -> Move | None:
    """The busiest replica of the node with the most to do, onto an empty node; None when none is overloaded, or empty."""
    crowded = [box for box in boxes if len(box.pieces) > 1 and box.busy >= OVERLOAD]
    for box in sorted(crowded, key=lambda each: -each.busy):
        for piece in sorted(box.pieces, key=lambda each: -each.busy):
            for target in boxes if piece.movable else ():
                need = None if target.pieces else allowed(piece, target.node_id)
                if need is not None and need <= target.free:
                    reason = f"node {box.node_id} is {box.busy:.0%} busy with {len(box.pieces)} replicas, {target.node_id} is empty"
                    return Move(piece, box.node_id, target.node_id, reason)
    return None


def advance(boxes: Sequence[Box], allowed: Allowed) -> list[Move]:
    """What the used node with the last name holds, onto an empty one with an earlier name: then the last ones can be stopped."""
    ordered = sorted(boxes, key=lambda each: order_of(each.node_id))
    last = next((nth for nth in reversed(range(len(ordered))) if ordered[nth].pieces), 0)
    source = ordered[last] if ordered else None
    if source is None or not all(piece.movable for piece in source.pieces):
        return []
    for target in ordered[:last]:
        needs = [] if target.pieces else [allowed(piece, target.node_id) for piece in source.pieces]
        if needs and None not in needs and sum(need or 0 for need in needs) <= target.free:
            reason = f"node {target.node_id} is empty, and nodes after it can be stopped then"
            return [Move(piece, source.node_id, target.node_id, reason) for piece in source.pieces]
    return []


def _empty(
    box: Box, left: dict[str, _Left], by_free: list[tuple[int, str]], allowed: Allowed
) -> list[Move] | None:
    """Moves of everything on a node, or None; what was planned before it failed is taken back."""
    moves: list[Move] = []
    undo: list[tuple[_Left, int, float, tuple[str, int]]] = []
    for piece in sorted(box.pieces, key=lambda each: (-each.nbytes, each.replica_id)):
        found = _best_fit(piece, box, left, by_free, allowed)
        if found is None:
            for target, nbytes, busy, stage in undo:
                _change(target, by_free, nbytes, -busy)
                target.stages.discard(stage)
            return None
        target, need = found
        stage = (piece.model, piece.stage)
        _change(target, by_free, -need, piece.busy)
        target.stages.add(stage)
        undo.append((target, need, piece.busy, stage))
        where = target.box
        reason = (
            f"node {box.node_id} is {box.busy:.0%} busy and can be emptied: {where.node_id} has {target.free + need} bytes "
            f"free and would be {target.busy:.0%} busy"
        )
        moves.append(Move(piece, box.node_id, where.node_id, reason))
    return moves


def _best_fit(
    piece: Piece, source: Box, left: dict[str, _Left], by_free: list[tuple[int, str]], allowed: Allowed
) -> tuple[_Left, int] | None:
    # The same partition takes less where it is computed in a smaller dtype, a quarter at least.
    for _, node_id in by_free[bisect_left(by_free, (piece.nbytes // 4, "")) :]:
        target = left[node_id]
        if node_id == source.node_id or (piece.model, piece.stage) in target.stages:
            continue
        if target.busy + piece.busy > BUSY_LIMIT:
            continue
        need = allowed(piece, node_id)
        if need is not None and need <= target.free:
            return target, need
    return None


def _change(target: _Left, by_free: list[tuple[int, str]], free: int, busy: float) -> None:
    by_free.remove((target.free, target.box.node_id))
    target.free += free
    target.busy += busy
    insort(by_free, (target.free, target.box.node_id))


def _left(box: Box) -> _Left:
    return _Left(box, box.free, box.busy, {(piece.model, piece.stage) for piece in box.pieces})


def _may_empty(box: Box) -> bool:
    return box.busy <= BUSY_LIMIT and all(piece.movable for piece in box.pieces)


def order_of(node_id: str) -> list[str | int]:
    """By name, numbers in it by their value: node-10 comes after node-2."""
    return [int(part) if nth % 2 else part for nth, part in enumerate(_NUMBER.split(node_id))]


@dataclass(slots=True)
class Consolidator:
    """Patience: moves begin only when nothing else is under way, and the mesh was that quiet for a while.

    Args:
        after_s: seconds for which nodes were so little used; 0: they are never emptied.
        relieve_after_s: seconds for which one had too much to do while another was empty.
        pause_s: seconds between two steps.
        share: nodes emptied in one step, as a part of all; one at least.
        in_order: nodes are stopped from the last name on, so that those are to be empty.
    """

    after_s: float = 60.0
    relieve_after_s: float = 5.0
    pause_s: float = 20.0
    share: float = 0.01
    in_order: bool = False
    _since: float | None = field(default=None, init=False)
    _moved_at: float = field(default=float("-inf"), init=False)

    def decide(self, boxes: Sequence[Box], allowed: Allowed, *, settled: bool, now: float) -> list[Move]:
        """Moves to begin now.

        Args:
            boxes: the nodes.
            allowed: says what a piece needs on a node.
            settled: whether every replica that is wanted serves, and no other one is there.
            now: seconds.
        """
        if not settled:
            self._since = None
            return []
        relief = relieve(boxes, allowed)
        moves = [relief] if relief is not None else []
        patience_s = self.relieve_after_s if relief is not None else self.after_s
        if relief is None and self.after_s > 0:
            moves = consolidate(boxes, allowed, most_nodes=max(1, int(len(boxes) * self.share)))
            if self.in_order and not moves:
                moves = advance(boxes, allowed)
        if not moves:
            self._since = None
            return []
        if self._since is None:
            self._since = now
        if now - self._since < patience_s or now - self._moved_at < self.pause_s:
            return []
        self._moved_at = now
        return moves
