"""The nodes that a node pool may still bring, as a deployment that has no room yet may count on them. Pure.

A pool starts nodes that are alike, so one that comes is taken to be like those that are there: of the usual memory (the one that
`scaling.capacity` counts with), and of those that have it, one where the model may be.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import median_low

from stagemesh.v1.registry_pb2 import ModelSpec, NodeRecord

from .placement import allowed
from .world import World

_NAME = "?new-{}"
"""Not a node's name: those are host names and numbers."""


def grown(world: World, spec: ModelSpec, most_nodes: int) -> World:
    """The world with the empty nodes that may come, as far as `spec` and what else lacks a node could use them.

    `most_nodes` is how many a pool may have in all; the same world when there are as many already, or none to go by.
    """
    here = [node for node in world.nodes.values() if not node.draining]
    more = most_nodes - len(here)
    if more <= 0 or not here:
        return world
    pattern = _pattern(
        here, lambda node: any(allowed(spec, nth, node) for nth in range(len(spec.partitions)))
    )
    lacking = sum(world.wanted(one, nth) for one in world.specs() for nth in range(len(one.partitions)))
    useful = min(more, len(spec.partitions) + max(0, lacking - len(world.assignments)))
    nodes = dict(world.nodes)
    for number in range(useful):
        one = NodeRecord()
        one.CopyFrom(pattern)
        one.node_id = _NAME.format(number)
        del one.keeps[:]
        nodes[one.node_id] = one
    return replace(world, nodes=nodes)


def _pattern(here: list[NodeRecord], suits: Callable[[NodeRecord], bool]) -> NodeRecord:
    usual = median_low(node.memory_bytes for node in here)
    alike = sorted(
        (node for node in here if node.memory_bytes == usual),
        key=lambda node: (not suits(node), node.node_id),
    )
    return alike[0]
