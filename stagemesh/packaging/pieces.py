"""Each piece's graph in its JSON form, with what crosses every boundary and where weights lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stagemesh.errors import CheckpointError, InvalidArgument

from .arguments import DTYPE_NAMES, encode
from .costs import Counted
from .export import Exported
from .graph_form import Graph, Node, Weight
from .manifest import Borrow, Spec
from .operators import GETITEM, SIZE_TARGETS, TO_SIZE, TO_TENSOR, resolve
from .order import SIZE_OF, Order, is_getitem, is_size

# Memory that nobody filled is filled: its operators are not allowed.
_FILLED = {"aten.empty.memory_format": "aten.zeros.default"}


@dataclass
class CutPiece:
    """A piece, ready to be written: as `manifest.Piece`, with the tensors of its own file."""

    takes: tuple[Spec, ...]
    graph: Graph
    tensors: dict[str, torch.Tensor]
    borrows: tuple[Borrow, ...]
    flops: int


@dataclass
class _Draft:
    """A piece while its graph is made."""

    index: int
    # Boundary tensors that come in: value name -> node (None for a size that is sent).
    takes: dict[str, torch.fx.Node]
    # Tensors at hand whose sizes may be read.
    tensors: list[torch.fx.Node]
    nodes: list[Node] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    weights: list[torch.fx.Node] = field(default_factory=list)


def weights_file(index: int) -> str:
    """Name of a piece's weights file."""
    return f"piece-{index}.safetensors"


class Splitter:
    """Makes the pieces of one exported module.

    Args:
        exported: the graph.
        order: of its operations.
        counted: its run over the example.
        cuts: positions in the order.
        names: of the inputs, and of the outputs.
    """

    def __init__(
        self,
        exported: Exported,
        order: Order,
        counted: Counted,
        cuts: Sequence[int],
        names: tuple[Sequence[str], Sequence[str]],
    ) -> None:
        self._exported, self._order, self._counted = exported, order, counted
        self._ends = [*cuts, len(order.operations)]
        self._names = names
        self._weights = {node for node in exported.program.graph.nodes if node.name in exported.state}
        # Sizes that some piece cannot read from its own tensors: node -> (piece that sends it, last that needs it).
        self._sent: dict[torch.fx.Node, tuple[int, int]] = {}
        self._drafts = [self._draft(index) for index in range(len(self._ends))]

    def pieces(self) -> list[CutPiece]:
        """All of them.

        Raises:
            InvalidArgument: an operator is not allowed, or a tensor's dtype has no name.
        """
        for draft in self._drafts:
            start = self._ends[draft.index - 1] if draft.index else 0
            for node in self._order.operations[start : self._ends[draft.index]]:
                self._add(draft, node)
                draft.tensors.append(node)
        for node, (origin, _) in list(self._sent.items()):
            draft = self._drafts[origin]
            self._size(draft, node)
            draft.nodes.append(Node(_sent_name(node), TO_TENSOR, [{"value": node.name}], {}))
        if self._order.outputs:
            for node in self._order.outputs:
                if node in self._weights:
                    self._operand(self._drafts[-1], node)
        return self._finish()

    def _draft(self, index: int) -> _Draft:
        order = self._order
        if index == 0:
            taken = list(order.inputs)
        else:
            at = self._ends[index - 1]
            values = [*order.inputs, *order.operations]
            taken = [node for node in values if order.made_at(node) < at <= order.last_use.get(node, -1)]
            taken = [node for node in taken if isinstance(node.meta["val"], torch.Tensor)]
            # The first is what a frame carries as its own tensor: best one with a row for each sample.
            taken.sort(key=lambda node: not self._is_rows(node))
        draft = _Draft(index, {node.name: node for node in taken}, list(taken))
        draft.named.update(draft.takes)
        return draft

    def _is_rows(self, node: torch.fx.Node) -> bool:
        value, example = node.meta["val"], self._counted.env[node]
        rows = value.ndim > 0 and not isinstance(value.shape[0], int) and value.is_floating_point()
        return rows and bool(torch.isfinite(example).all())

    def _add(self, draft: _Draft, node: torch.fx.Node) -> None:
        def name_of(source: torch.fx.Node) -> str:
            return self._operand(draft, source)

        op = GETITEM if is_getitem(node) else str(node.target)
        kwargs = dict(node.kwargs)
        if op in _FILLED:
            op = _FILLED[op]
            kwargs.pop("memory_format", None)
        try:
            args = [encode(arg, name_of) for arg in node.args]
            encoded = {key: encode(value, name_of) for key, value in kwargs.items()}
            resolve(op, args, encoded)
        except TypeError as error:
            raise InvalidArgument(
                f"module: {op} has an argument that a package cannot hold: {error}", field="module"
            ) from error
        except CheckpointError as error:
            raise InvalidArgument(f"module: {error.message}{_where(node)}", field="module") from error
        draft.nodes.append(Node(node.name, op, args, encoded))
        draft.named.add(node.name)

    def _operand(self, draft: _Draft, node: torch.fx.Node) -> str:
        if node in self._weights:
            if node.name not in draft.named:
                draft.weights.append(node)
                draft.named.add(node.name)
        elif is_size(node) or not isinstance(node.meta["val"], torch.Tensor | list | tuple):
            self._size(draft, node)
        return node.name

    def _size(self, draft: _Draft, node: torch.fx.Node) -> None:
        """Have a size in a piece: compute it from what is there, or have it sent."""
        if node.name in draft.named:
            return
        if node.target in SIZE_TARGETS:
            args = [encode(arg, lambda source: self._operand(draft, source)) for arg in _flat(node)]
            draft.nodes.append(Node(node.name, SIZE_TARGETS[node.target], args, {}))
        elif node.target is SIZE_OF and (found := self._with_size(draft, node)) is not None:
            source, dimension = found
            args = [{"value": self._operand(draft, source)}, dimension]
            draft.nodes.append(Node(node.name, str(SIZE_OF), args, {}))
        else:
            origin = self._piece_of(node.args[0] if node.target is SIZE_OF else node)
            last = max(draft.index, self._sent.get(node, (0, 0))[1])
            self._sent[node] = (origin, last)
            draft.nodes.append(Node(node.name, TO_SIZE, [{"value": _sent_name(node)}], {}))
        draft.named.add(node.name)

    def _with_size(self, draft: _Draft, node: torch.fx.Node) -> tuple[torch.fx.Node, int] | None:
        """A tensor at hand and its dimension that has the size which `node` is."""
        source, dimension = node.args
        if source in draft.tensors or source in self._weights:
            return source, dimension  # type: ignore[return-value]
        for tensor in draft.tensors:
            value = tensor.meta["val"]
            for index, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if _same(size, node.meta["val"]):
                    return tensor, index
        return None

    def _piece_of(self, node: Any) -> int:
        made = self._order.made_at(node)
        return next(index for index, end in enumerate(self._ends) if made < end)

    def _finish(self) -> list[CutPiece]:
        owners: dict[Any, Weight] = {}
        taken_names: set[tuple[str, str]] = set()
        takes = [self._takes(draft) for draft in self._drafts]
        pieces = []
        for index, draft in enumerate(self._drafts):
            weights, tensors, borrows = {}, {}, []
            for node in draft.weights:
                name, tensor = self._exported.state[node.name]
                place = owners.get(_identity(tensor))
                if place is None:
                    file = weights_file(index)
                    stored = name if (file, name) not in taken_names else node.name
                    place = owners[_identity(tensor)] = Weight(file, stored)
                    taken_names.add((file, stored))
                    tensors[stored] = tensor
                elif place.file != weights_file(index):
                    borrow = Borrow(place.file, place.tensor, tensor.numel() * tensor.element_size())
                    if borrow not in borrows:
                        borrows.append(borrow)
                weights[node.name] = place
            comes = {spec.name: spec.name for spec in takes[index]}
            if index == 0:
                comes = dict(zip(self._names[0], (node.name for node in self._order.inputs), strict=True))
            if index + 1 < len(takes):
                goes = {spec.name: spec.name for spec in takes[index + 1]}
            else:
                goes = dict(zip(self._names[1], (node.name for node in self._order.outputs), strict=True))
            start = self._ends[index - 1] if index else 0
            flops = sum(
                self._counted.flops[node] for node in self._order.operations[start : self._ends[index]]
            )
            graph = Graph(comes, weights, draft.nodes, goes)
            pieces.append(CutPiece(takes[index], graph, tensors, tuple(borrows), flops))
        return pieces

    def _takes(self, draft: _Draft) -> tuple[Spec, ...]:
        if draft.index == 0:
            return self.specs(self._names[0], self._order.inputs)
        specs = list(self.specs(list(draft.takes), list(draft.takes.values())))
        for node, (origin, last) in self._sent.items():
            if origin < draft.index <= last:
                specs.append(Spec(_sent_name(node), "I64", (), ()))
        return tuple(specs)

    def specs(self, names: Sequence[str], nodes: Sequence[torch.fx.Node]) -> tuple[Spec, ...]:
        """How the manifest describes these nodes' tensors."""
        result = []
        for name, node in zip(names, nodes, strict=True):
            value, example = node.meta["val"], self._counted.env[node]
            if value.dtype not in DTYPE_NAMES:
                raise InvalidArgument(
                    f"module: {name!r} is {value.dtype}, which cannot be sent", field="module"
                )
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            result.append(Spec(name, DTYPE_NAMES[value.dtype], shape, tuple(example.shape)))
        return tuple(result)


def _flat(node: torch.fx.Node) -> list[Any]:
    return [item for arg in node.args for item in (arg if isinstance(arg, list | tuple) else [arg])]


def _sent_name(node: torch.fx.Node) -> str:
    return f"{node.name}.size"


def _same(size: Any, wanted: Any) -> bool:
    if isinstance(size, int) or isinstance(wanted, int):
        return isinstance(size, int) and isinstance(wanted, int) and size == wanted
    return bool(size.node.expr == wanted.node.expr)


def _identity(tensor: torch.Tensor) -> Any:
    if not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _where(node: torch.fx.Node) -> str:
    modules = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return f" (in submodule {str(modules[-1])[:80]!r})" if modules and modules[-1] else ""
