"""Nodes that need not be told apart. Pure.

Measured speeds are never quite equal, so a thousand nodes may be a thousand kinds. Beyond a number of classes the most
unlike members are parted first, and each class counts as slow and as small as the least of it: a plan made with them
can be had, and may do better than it says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .fleet import Node
from .goal import Goal
from .shape import ModelShape

__all__ = ["MAX_CLASSES", "NodeClass", "classes_of"]

MAX_CLASSES = 64


@dataclass(frozen=True)
class NodeClass:
    """Nodes of one zone and under the same pins."""

    nodes: tuple[Node, ...]
    # Seconds of a pass besides reading weights; seconds for each stored byte read; seconds to send a boundary.
    overhead_s: float
    byte_s: float
    send_s: float
    # Stored bytes that it has room for, headroom taken off.
    room_bytes: float
    zone: str
    pins: tuple[bool, ...]


def classes_of(
    shape: ModelShape, nodes: Sequence[Node], goal: Goal, most: int = MAX_CLASSES
) -> tuple[tuple[NodeClass, ...], tuple[NodeClass, ...]]:
    """At most `most` classes (more, where zones and pins alone make more), and the same as their bound needs them.

    Both are equal where no unlike nodes had to be put together.
    """
    alike: dict[tuple[object, ...], list[NodeClass]] = {}
    for node in nodes:
        one = _alone(shape, node, goal)
        key = (one.zone, one.pins, one.overhead_s, one.byte_s, one.send_s, one.room_bytes)
        alike.setdefault(key, []).append(one)
    equal = [_merged(group) for group in alike.values()]
    if len(equal) <= most:
        return tuple(equal), tuple(equal)
    groups: dict[tuple[object, ...], list[NodeClass]] = {}
    for one in equal:
        groups.setdefault((one.zone, one.pins), []).append(one)
    parts = [_Part(shape, group) for group in groups.values()]
    while len(parts) < most:
        widest = max(parts, key=lambda part: part.loss)
        parts.remove(widest)
        parts += widest.halves()
    classes = [part.members for part in parts]
    return tuple(map(_merged, classes)), tuple(map(_ideal, classes))


class _Part:
    """Some classes, and what is lost by treating them as one: how unlike they are, times how many nodes."""

    def __init__(self, shape: ModelShape, members: list[NodeClass]) -> None:
        self._shape = shape
        self.members = members
        points = [_point(shape, one) for one in members]
        spreads = [max(values) - min(values) for values in zip(*points, strict=True)]
        self._axis = max(range(len(spreads)), key=lambda axis: spreads[axis])
        self._at = (
            max(point[self._axis] for point in points) + min(point[self._axis] for point in points)
        ) / 2
        self.loss = spreads[self._axis] * sum(len(one.nodes) for one in members)

    def halves(self) -> "list[_Part]":
        low = [one for one in self.members if _point(self._shape, one)[self._axis] <= self._at]
        high = [one for one in self.members if _point(self._shape, one)[self._axis] > self._at]
        return [_Part(self._shape, low), _Part(self._shape, high)]


def _point(shape: ModelShape, one: NodeClass) -> tuple[float, float, float]:
    """Logarithms of speed, room and sending time, so that differences are ratios."""
    layer_s = one.overhead_s + one.byte_s * shape.mean_layer_bytes
    return (math.log(layer_s), math.log(one.room_bytes), math.log(max(one.send_s, 1e-6)))


def _merged(group: Sequence[NodeClass]) -> NodeClass:
    """The least of each number."""
    return NodeClass(
        nodes=tuple(node for one in group for node in one.nodes),
        overhead_s=max(one.overhead_s for one in group),
        byte_s=max(one.byte_s for one in group),
        send_s=max(one.send_s for one in group),
        room_bytes=min(one.room_bytes for one in group),
        zone=group[0].zone,
        pins=group[0].pins,
    )


def _ideal(group: Sequence[NodeClass]) -> NodeClass:
    """What makes the bound hold for every member: price the faster ones higher, in proportion to their speed.

    With prices w * p, where the weights w average 1 and go with 1 / byte_s, a pass costs every member at least
    p * (the least w * overhead_s + w * byte_s * read), and w * byte_s is the same for all: their harmonic mean.
    """
    nodes = tuple(node for one in group for node in one.nodes)
    mean = sum(len(one.nodes) / one.byte_s for one in group) / len(nodes)
    weights = [1 / one.byte_s / mean for one in group]
    return NodeClass(
        nodes=nodes,
        overhead_s=min(one.overhead_s * weight for one, weight in zip(group, weights, strict=True)),
        byte_s=1 / mean,
        send_s=min(one.send_s * weight for one, weight in zip(group, weights, strict=True)),
        room_bytes=max(one.room_bytes for one in group),
        zone=group[0].zone,
        pins=group[0].pins,
    )


def _alone(shape: ModelShape, node: Node, goal: Goal) -> NodeClass:
    scale = shape.computed_bytes(node.device)
    item = shape.item_bytes(node.device)
    byte_s = scale * node.speed.seconds_per_byte(goal.batch, shape.mean_layer_bytes * scale, item)
    sent_bits = shape.hidden_size * item * goal.batch * 8
    return NodeClass(
        nodes=(node,),
        overhead_s=node.speed.overhead_ms / 1e3,
        byte_s=byte_s,
        send_s=sent_bits / (node.network_gbit * 1e9) if node.network_gbit else 0.0,
        room_bytes=node.memory_bytes / goal.headroom / scale,
        zone=node.zone,
        pins=tuple(pin.allows(node) for pin in goal.pins),
    )
