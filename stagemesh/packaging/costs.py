"""What each operation of an exported graph costs: counted, not timed, so that the same module is cut the same way."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .cuts import Cost

# A machine to weigh bytes against arithmetic with. Only the ratio matters.
_BYTES_PER_S, _FLOPS_PER_S = 10e9, 50e9


class Counted(torch.fx.Interpreter):
    """Runs a graph once and keeps what every node gave and how much arithmetic it was."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.flops: dict[torch.fx.Node, int] = {}
        self.bytes: dict[torch.fx.Node, int] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Count around the real operation."""
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.flops[n] = counter.get_total_flops()
        self.bytes[n] = _bytes(result)
        return result


def cost_of(
    node: torch.fx.Node, counted: Counted, weights: Mapping[torch.fx.Node, int], seen: set[torch.fx.Node]
) -> Cost:
    """Of one operation; a weight is counted where it is used first.

    Args:
        node: the operation.
        counted: of its graph.
        weights: bytes of each weight's placeholder.
        seen: weights counted already; added to.
    """
    new = {source for source in node.all_input_nodes if source in weights} - seen
    seen |= new
    moved = counted.bytes[node] + sum(weights[source] for source in new)
    heavy = counted.flops[node] > 0 or any(weights[source] > 0 for source in new)
    return Cost(moved / _BYTES_PER_S + counted.flops[node] / _FLOPS_PER_S, heavy)


def seconds_to_send(size: int) -> float:
    """The same measure for bytes that cross a cut."""
    return size / _BYTES_PER_S


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
