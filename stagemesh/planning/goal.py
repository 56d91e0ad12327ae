"""What a plan is for, and what it must keep to. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .fleet import Node

__all__ = ["Goal", "Pin"]

# A partition takes more than its parameters: activations, KV, buffers. The registry's placement counts the same.
HEADROOM = 1.2


@dataclass(frozen=True)
class Pin:
    """Layers [first, end) only on nodes of the zone, with the labels, or of the names given; empty is any."""

    first: int
    end: int
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()

    def allows(self, node: Node) -> bool:
        """Whether the layers may be on this node."""
        return (
            (not self.zone or node.zone == self.zone)
            and (not self.nodes or node.name in self.nodes)
            and all(node.labels.get(key) == value for key, value in self.labels.items())
        )


@dataclass(frozen=True)
class Goal:
    """`objective` "throughput": most tokens per second, within `latency_ms` per token where that is not 0.
    "latency": fewest milliseconds per token, with at least `tokens_per_s` where that is not 0.
    """

    objective: Literal["throughput", "latency"] = "throughput"
    latency_ms: float = 0.0
    tokens_per_s: float = 0.0
    # Rows of a pass: sessions that decode together.
    batch: int = 8
    # Exactly so many stages; 0 is any number.
    stages: int = 0
    headroom: float = HEADROOM
    # Nodes outside of these zones (empty: any), or without these labels, are not used.
    zones: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()

    def allows(self, node: Node) -> bool:
        """Whether the node may host anything."""
        wanted = all(node.labels.get(key) == value for key, value in self.labels.items())
        return wanted and (not self.zones or node.zone in self.zones)
