"""The planning problem as arrays, and what a plan is worth in it: the one definition that every solver shares. Pure.

Nodes of equal hardware, zone and pins make a class; a node hosts at most one partition of the model. A stage is a run
of pieces (what lies between two legal cuts) and a count of nodes of each class, which work side by side:

- its rate is the sum of its nodes' rates, `batch / max(time of a pass, time to send its result)`;
- the plan's throughput is the rate of its slowest stage (enough sessions to keep every stage busy are assumed);
- the plan's latency is that of one token along the slowest route: for each stage the longest pass of its nodes, for
  each hop the slowest link between the two stages' zones, and the way back to the head.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stagemesh.errors import InvalidArgument

from .classes import NodeClass, classes_of
from .fleet import Links, Node
from .goal import Goal
from .shape import ModelShape

__all__ = ["Floats", "Problem", "Stage", "Stages", "build"]

Floats = npt.NDArray[np.float64]
# Token ids, on the way back from the last stage.
_BACK_BYTES = 64


@dataclass(frozen=True)
class Stage:
    """Pieces [first, end) on `counts` nodes of each class."""

    first: int
    end: int
    counts: tuple[int, ...]


Stages = tuple[Stage, ...]


@dataclass(frozen=True)
class Problem:
    """`time[k, i, j]`: seconds of a pass through pieces [i, j) on class k, inf where it may not be there."""

    shape: ModelShape
    goal: Goal
    links: Links
    classes: tuple[NodeClass, ...]
    # Layers before each piece, and after the last.
    ends: tuple[int, ...]
    time: Floats
    # Seconds for which a pass keeps a node from the next one.
    busy: Floats
    # The same for the bound; differs from `busy` where unlike nodes had to be put into one class.
    ideal: Floats
    zones: tuple[str, ...]
    # Seconds of a hop and of the way back, from zone to zone.
    hop: Floats
    back: Floats

    @property
    def pieces(self) -> int:
        """How many there are."""
        return len(self.ends) - 1

    @cached_property
    def merged(self) -> bool:
        """Whether unlike nodes had to be put into one class, so that no plan can be proven best."""
        return self.ideal is not self.busy

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Nodes of each class."""
        return tuple(len(one.nodes) for one in self.classes)

    @cached_property
    def zone_of(self) -> tuple[int, ...]:
        """Index of each class's zone."""
        return tuple(self.zones.index(one.zone) for one in self.classes)

    @cached_property
    def rates(self) -> Floats:
        """Tokens per second of one node, [class, first, end]; 0 where it may not be."""
        return self.goal.batch / self.busy

    def rate(self, stage: Stage) -> float:
        """Tokens per second of a stage."""
        total = 0.0
        for one, count in enumerate(stage.counts):
            total += count * float(self.rates[one, stage.first, stage.end])
        return total

    def throughput(self, stages: Stages) -> float:
        """Tokens per second of the plan."""
        return min(map(self.rate, stages))

    def pass_s(self, stage: Stage) -> float:
        """Longest pass among the stage's nodes."""
        return max(
            float(self.time[one, stage.first, stage.end]) for one, count in enumerate(stage.counts) if count
        )

    def hop_s(self, stage: Stage, following: Stage, table: Floats | None = None) -> float:
        """Slowest link from one stage to the next; with `back` as the table, of the way back."""
        table = self.hop if table is None else table
        return max(
            float(table[a, b]) for a in self.zones_of(stage.counts) for b in self.zones_of(following.counts)
        )

    def latency(self, stages: Stages) -> float:
        """Seconds of a token along the slowest route."""
        total = sum(map(self.pass_s, stages))
        if len(stages) > 1:
            total += sum(self.hop_s(one, two) for one, two in itertools.pairwise(stages))
            total += self.hop_s(stages[-1], stages[0], self.back)
        return total

    def zones_of(self, counts: Sequence[int]) -> frozenset[int]:
        """Zones of the classes counted."""
        return frozenset(self.zone_of[one] for one, count in enumerate(counts) if count)

    def check(self, stages: Stages) -> None:
        """Raise `ValueError` unless this is a plan: all pieces in order, nodes where they may be, none used twice."""
        at = 0
        used = [0] * len(self.classes)
        for stage in stages:
            if stage.first != at or stage.end <= at:
                raise ValueError(f"stage {stage} does not follow piece {at}")
            at = stage.end
            if not any(stage.counts):
                raise ValueError(f"stage {stage} has no node")
            for one, count in enumerate(stage.counts):
                used[one] += count
                if count and math.isinf(self.time[one, stage.first, stage.end]):
                    raise ValueError(f"class {one} may not host {stage}")
        if at != self.pieces or any(a > b for a, b in zip(used, self.counts, strict=True)):
            raise ValueError(f"ends at piece {at} of {self.pieces} with {used} of {self.counts} nodes")


def build(shape: ModelShape, nodes: Sequence[Node], links: Links, goal: Goal) -> Problem:
    """The problem.

    Raises:
        InvalidArgument: no node is allowed, or a pin is of layers that are not there.
    """
    for index, pin in enumerate(goal.pins):
        if not 0 <= pin.first < pin.end <= shape.layers:
            raise InvalidArgument(
                f"pins[{index}].layers: {pin.first}..{pin.end - 1} is not within the model's 0..{shape.layers - 1}",
                field=f"pins[{index}].layers",
            )
    usable = [node for node in nodes if goal.allows(node) and node.memory_bytes > 0]
    if not usable:
        raise InvalidArgument(
            f"nodes: none of {len(nodes)} has memory and is of an allowed zone and label", field="nodes"
        )
    ends = tuple(shape.ends())
    classes, ideal = classes_of(shape, usable, goal)
    zones = tuple(sorted({one.zone for one in classes}))
    size = shape.hidden_size * 4 * goal.batch
    time, busy = _times(shape, goal, classes, ends)
    return Problem(
        shape=shape,
        goal=goal,
        links=links,
        classes=classes,
        ends=ends,
        time=time,
        busy=busy,
        zones=zones,
        hop=np.array([[links.between(a, b).seconds(size) for b in zones] for a in zones]),
        ideal=busy if ideal is classes or ideal == classes else _times(shape, goal, ideal, ends)[1],
        back=np.array([[links.between(a, b).seconds(_BACK_BYTES) for b in zones] for a in zones]),
    )


def _times(
    shape: ModelShape, goal: Goal, classes: Sequence[NodeClass], ends: Sequence[int]
) -> tuple[Floats, Floats]:
    """`Problem.time` and `Problem.busy`, both [class, first piece, end piece]."""
    pieces = len(ends) - 1
    time = np.full((len(classes), pieces, pieces + 1), np.inf)
    busy = np.full_like(time, np.inf)
    before = np.array(shape.before(), dtype=np.float64)[list(ends)]
    read = before[None, :] - before[:-1, None]
    held = read.copy()
    held[0, :] += shape.embedding_bytes
    held[:, -1] += shape.head_bytes
    held[1:, -1] += shape.tied_bytes
    read[:, -1] += shape.head_bytes + shape.tied_bytes
    upper = np.arange(pieces + 1)[None, :] > np.arange(pieces)[:, None]
    first, end = np.array(ends[:-1])[:, None], np.array(ends)[None, :]
    for index, one in enumerate(classes):
        fits = upper & (held <= one.room_bytes)
        for pin, allowed in zip(goal.pins, one.pins, strict=True):
            if not allowed:
                fits &= ~((first < pin.end) & (end > pin.first))
        passes = one.overhead_s + one.byte_s * read
        time[index] = np.where(fits, passes, np.inf)
        sends = np.full(pieces + 1, one.send_s)
        sends[-1] = 0.0  # the last stage sends token ids
        busy[index] = np.where(fits, np.maximum(passes, sends[None, :]), np.inf)
    return time, busy
