"""The frames that a pass gives, and where each goes."""

from dataclasses import dataclass, field

from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import Frame, RouteHop, Step

from .partition.interface import Activations, Partition
from .passes import Computed, Work
from .session import ReplicaSession
from .tensors import to_message, to_view


@dataclass(slots=True)
class Outgoing:
    """A frame, the tensor that goes with it, where to, and whose steps are in it."""

    target: RouteHop
    frame: Frame
    tensor: TensorView | None
    steps: list[tuple[ReplicaSession, Step]] = field(default_factory=list)


def outgoing(model: Partition, work: Work, done: Computed) -> list[Outgoing]:
    """The frames of a pass: to the next hops, or from the last stage to the heads.

    A frame that is the one they came in has the hop records of before; others have none yet. What ended while it ran, or
    goes on in another epoch, is left out.
    """
    if model.is_last:
        return _results(done)
    if len(work.steps) == 1:
        session, step = work.steps[0]
        if session.ended or session.epoch != step.epoch:
            return []
        assert session.next_hop is not None, "only the last partition has no next hop"
        return [
            _onward(work, session.next_hop, done.activations, work.frame or Frame(steps=[step]), work.steps)
        ]
    groups: dict[str, tuple[RouteHop, list[int]]] = {}
    for index, (session, step) in enumerate(work.steps):
        hop = session.next_hop
        assert hop is not None, "only the last partition has no next hop"
        if not session.ended and session.epoch == step.epoch:
            groups.setdefault(hop.replica_id, (hop, []))[1].append(index)
    out = []
    for hop, indices in groups.values():
        whole = len(indices) == len(work.steps)
        rows = done.activations
        steps = work.steps
        if not whole:
            segments = [work.batch.segments[i] for i in indices]
            rows = rows.rows([slice(s.start, s.start + s.rows) for s in segments])
            steps = [work.steps[i] for i in indices]
        frame = work.frame if whole and work.frame is not None else Frame(steps=[step for _, step in steps])
        out.append(_onward(work, hop, rows, frame, steps))
    return out


def _results(done: Computed) -> list[Outgoing]:
    by_head: dict[str, Outgoing] = {}
    for session, result in done.results:
        if not session.ended and session.epoch == result.epoch:
            head = session.head
            by_head.setdefault(head.replica_id, Outgoing(head, Frame(), None)).frame.results.append(result)
    outputs = [
        Outgoing(session.head, Frame(results=[result]), to_view(output))
        for session, result, output in done.outputs
        if not session.ended
    ]
    return [*by_head.values(), *outputs]


def _onward(
    work: Work, hop: RouteHop, rows: Activations, frame: Frame, steps: list[tuple[ReplicaSession, Step]]
) -> Outgoing:
    """A frame with the sides of these rows instead of those it came with, and its tensor."""
    if frame is work.frame and frame.sides:
        del frame.sides[:]
    if rows.sides:
        frame.sides.extend(to_message(side, name) for name, side in rows.sides.items())
    return Outgoing(hop, frame, to_view(rows.hidden), steps)
