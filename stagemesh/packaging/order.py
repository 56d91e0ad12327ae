"""The operations of an exported graph in the order they run, and what would cross a cut before each of them.

Sizes (the batch, and what is computed from it) are no operations here: each piece reads them from its own tensors.
"""

import operator

import torch

from .costs import Counted, seconds_to_send
from .export import MARK, Exported
from .operators import SIZE_TARGETS

SIZE_OF = torch.ops.aten.sym_size.int
_ASSERT = torch.ops.aten._assert_scalar.default
# What the exporter notes for compilers; the door checks dtypes and shapes.
_NOTES = frozenset(("_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"))


def is_size(node: torch.fx.Node) -> bool:
    """Whether a node is arithmetic on sizes that any piece can do for itself."""
    return node.op == "call_function" and (node.target is SIZE_OF or node.target in SIZE_TARGETS)


def is_getitem(node: torch.fx.Node) -> bool:
    """Whether a node picks one of several results of an operation."""
    return node.op == "call_function" and node.target is operator.getitem


class Order:
    """Operations in order, without dead ones.

    Attributes:
        operations: those that must run once, somewhere.
        marks: positions at which a `pipe_split()` stood.
        inputs, outputs: nodes, as in `Exported`.
    """

    def __init__(self, exported: Exported) -> None:
        nodes = list(exported.program.graph.nodes)
        self.inputs, self.outputs = exported.inputs, exported.outputs
        needed = set(self.outputs)
        for node in reversed(nodes):
            if node in needed or node.target is _ASSERT:
                needed.update(node.all_input_nodes)
                needed.add(node)
        self.operations: list[torch.fx.Node] = []
        self.marks: list[int] = []
        for node in nodes:
            if node.target is MARK:
                self.marks.append(len(self.operations))
            elif node.op == "call_function" and node in needed and not is_size(node) and not _is_note(node):
                self.operations.append(node)
        self.marks = sorted({mark for mark in self.marks if 0 < mark < len(self.operations)})
        self.position = {node: index for index, node in enumerate(self.operations)}
        self.last_use = self._last_uses()

    def _last_uses(self) -> dict[torch.fx.Node, int]:
        """Position of the last operation that reads a value; the outputs are read after the last."""
        last: dict[torch.fx.Node, int] = {}
        for index, node in enumerate(self.operations):
            for source in node.all_input_nodes:
                last[source] = index
        return last | dict.fromkeys(self.outputs, len(self.operations))

    def made_at(self, node: torch.fx.Node) -> int:
        """Position of an operation; -1 for an input."""
        return self.position.get(node, -1)

    def crossing(self, counted: Counted) -> list[float | None]:
        """Seconds to send what is alive at a cut before each operation; None where no cut is possible."""
        ends = len(self.operations) + 1
        change, blocked = [0.0] * (ends + 1), [0] * (ends + 1)
        for node in [*self.inputs, *self.operations]:
            made, last = self.made_at(node), self.last_use.get(node, -1)
            if last <= made:
                continue
            change[made + 1] += seconds_to_send(counted.bytes[node])
            change[last + 1] -= seconds_to_send(counted.bytes[node])
            if isinstance(node.meta.get("val"), list | tuple):
                blocked[made + 1] += 1
                blocked[last + 1] -= 1
        result: list[float | None] = []
        alive, stuck = 0.0, 0
        for position in range(len(self.operations)):
            alive += change[position]
            stuck += blocked[position]
            result.append(None if stuck else alive)
        return result

    def legal(self, position: int, crossing: list[float | None]) -> int:
        """The first position from here on at which a cut is possible."""
        while position < len(crossing) and crossing[position] is None:
            position += 1
        return position


def _is_note(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.partition("::")[2] in _NOTES
