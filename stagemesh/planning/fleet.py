"""Nodes and the links between them, as the planner sees them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Link", "Links", "Node", "Speed"]


@dataclass(frozen=True)
class Speed:
    """How long a node takes: measured for the model's own layers where known, else from its two rates.

    `layer_ms` maps the rows of a pass to the milliseconds that one layer of average size takes. Without it the time
    is that of reading the weights once (`memory_gbps`, GB/s) or of multiplying with them (`gflops`), the longer one.
    `overhead_ms` is what a pass takes besides.
    """

    layer_ms: Mapping[int, float] = field(default_factory=dict)
    gflops: float = 0.0
    memory_gbps: float = 0.0
    overhead_ms: float = 0.0

    def seconds_per_byte(self, rows: int, layer_bytes: float, item_bytes: int) -> float:
        """Of computed weights, for a pass of `rows`; `layer_bytes` and `item_bytes` are of the computed dtype."""
        if self.layer_ms:
            return _between(self.layer_ms, rows) / 1e3 / layer_bytes
        return max(1 / (self.memory_gbps * 1e9), 2 * rows / (item_bytes * self.gflops * 1e9))

    def slower(self, factor: float) -> "Speed":
        """That of a node that takes `factor` times as long for everything."""
        return Speed(
            {rows: ms * factor for rows, ms in self.layer_ms.items()},
            self.gflops / factor,
            self.memory_gbps / factor,
            self.overhead_ms * factor,
        )


@dataclass(frozen=True)
class Node:
    """One node; `memory_bytes` is what it has for partitions, `network_gbit` (Gbit/s) what it can send, 0 unlimited."""

    name: str
    memory_bytes: int
    speed: Speed
    device: str = "cpu"
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    network_gbit: float = 0.0


@dataclass(frozen=True)
class Link:
    """Round trip in milliseconds and rate in Gbit/s (0: unlimited) between two nodes."""

    rtt_ms: float = 0.0
    gbit: float = 0.0

    def seconds(self, size: float) -> float:
        """One way, for `size` bytes."""
        return self.rtt_ms / 2e3 + (size * 8 / (self.gbit * 1e9) if self.gbit else 0.0)


@dataclass(frozen=True)
class Links:
    """The link between two nodes, by their zones."""

    within: Link = Link()
    across: Link = Link()
    # Both orders of a pair are the same link; a zone with itself may be named too.
    pairs: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def between(self, one: str, other: str) -> Link:
        """From zone to zone."""
        named = self.pairs.get((one, other)) or self.pairs.get((other, one))
        return named or (self.within if one == other else self.across)


def _between(known: Mapping[int, float], rows: int) -> float:
    """Linear between the two nearest known numbers of rows; beyond the ends in proportion, or the end's own."""
    below = max((one for one in known if one <= rows), default=None)
    above = min((one for one in known if one >= rows), default=None)
    if below is None:
        assert above is not None  # `known` is not empty
        return known[above]
    if above is None:
        return known[below] * rows / below
    if below == above:
        return known[below]
    share = (rows - below) / (above - below)
    return known[below] + share * (known[above] - known[below])
