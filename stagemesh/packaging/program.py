"""A piece's graph made ready to run: a list of steps over numbered slots, no generated code.

Considered: a `torch.fx.GraphModule`, which writes Python source from the graph's names and executes it. A loop over
prepared steps needs no source, frees each value after its last use, and costs about the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stagemesh.errors import CheckpointError, InvalidArgument, ResourceExhausted

from .arguments import constant
from .graph_form import Graph
from .operators import resolve

# An argument that must be made anew for each run.
_Builder = Callable[[list[Any]], Any]


@dataclass(slots=True)
class _Step:
    run: Callable[..., Any]
    name: str
    out: int
    args: list[Any]
    # Which of `args` are slots, and which have to be built from slots.
    slots: list[tuple[int, int]]
    builders: list[tuple[int, _Builder]]
    kwargs: dict[str, Any]
    kwarg_builders: list[tuple[str, _Builder]]
    # Slots that nothing reads after this step.
    done: list[int]


class Program:
    """A piece on a device.

    Args:
        graph: the piece.
        weights: its tensors on the device, by value name.
        device: where new tensors are made.

    Raises:
        CheckpointError: the graph has an operator that is not allowed.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, torch.Tensor], device: torch.device) -> None:
        slots: dict[str, int] = {}

        def slot(name: str) -> int:
            return slots.setdefault(name, len(slots))

        self._device = device
        self._weights = [(slot(name), weights[name]) for name in graph.weights]
        self._takes = [(boundary, slot(value)) for boundary, value in graph.takes.items()]
        self._steps: list[_Step] = []
        for node in graph.nodes:
            run = resolve(node.op, node.args, node.kwargs)
            args: list[Any] = []
            kwargs: dict[str, Any] = {}
            by_slot: list[tuple[int, int]] = []
            builders: list[tuple[int, _Builder]] = []
            kwarg_builders: list[tuple[str, _Builder]] = []
            for index, value in enumerate(node.args):
                made = _prepare(value, slots, device)
                if type(made) is _Slot:
                    by_slot.append((index, made.index))
                elif type(made) is _List:
                    builders.append((index, made.build))
                args.append(None if type(made) in (_Slot, _List) else made)
            for key, value in node.kwargs.items():
                made = _prepare(value, slots, device)
                if type(made) in (_Slot, _List):
                    kwarg_builders.append((key, made.build))
                else:
                    kwargs[key] = made
            step = _Step(run, node.op, slot(node.name), args, by_slot, builders, kwargs, kwarg_builders, [])
            self._steps.append(step)
        self._gives = [(boundary, slots[value]) for boundary, value in graph.gives.items()]
        self._slots = len(slots)
        self._free(graph, slots)

    def _free(self, graph: Graph, slots: Mapping[str, int]) -> None:
        kept = {index for _, index in self._gives} | {index for index, _ in self._weights}
        last: dict[int, int] = {}
        for at, node in enumerate(graph.nodes):
            last[slots[node.name]] = at
            for name in _used([node.args, list(node.kwargs.values())]):
                last[slots[name]] = at
        for index, at in last.items():
            if index not in kept:
                self._steps[at].done.append(index)

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the piece gives, by boundary name.

        Raises:
            InvalidArgument: an operator refuses the values (an index beyond a table, say).
            ResourceExhausted: the device has not the memory.
        """
        values: list[Any] = [None] * self._slots
        for index, weight in self._weights:
            values[index] = weight
        for boundary, index in self._takes:
            values[index] = given[boundary]
        for step in self._steps:
            args = step.args.copy()
            for at, index in step.slots:
                args[at] = values[index]
            for at, build in step.builders:
                args[at] = build(values)
            try:
                if step.kwarg_builders:
                    kwargs = step.kwargs | {key: build(values) for key, build in step.kwarg_builders}
                    values[step.out] = step.run(*args, **kwargs)
                else:
                    values[step.out] = step.run(*args, **step.kwargs)
            except Exception as error:
                raise _translated(step.name, error) from error
            for index in step.done:
                values[index] = None
        result = {boundary: values[index] for boundary, index in self._gives}
        for boundary, value in result.items():
            if not isinstance(value, torch.Tensor):
                raise CheckpointError(f"the graph gives no tensor as {boundary!r}", field="source")
        return result


class _Slot:
    """A value that some step made."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def build(self, values: list[Any]) -> Any:
        return values[self.index]


class _List:
    """A list with such values in it."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def build(self, values: list[Any]) -> Any:
        return [item.build(values) if type(item) in (_Slot, _List) else item for item in self.items]


def _prepare(value: Any, slots: Mapping[str, int], device: torch.device) -> Any:
    """A constant, a `_Slot` or a `_List`."""
    if isinstance(value, dict):
        ((mark, what),) = value.items()
        return _Slot(slots[what]) if mark == "value" else constant(mark, what, device)
    if not isinstance(value, list):
        return value
    items = [_prepare(item, slots, device) for item in value]
    return _List(items) if any(type(item) in (_Slot, _List) for item in items) else items


def _used(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _used(item)]
    return [value["value"]] if isinstance(value, dict) and "value" in value else []


def _translated(name: str, error: Exception) -> Exception:
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return ResourceExhausted("the device has not enough memory for this batch")
    if isinstance(error, MemoryError | KeyboardInterrupt):
        return ResourceExhausted("the host has not enough memory for this batch")
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return InvalidArgument(f"inputs: {name} cannot compute with these values: {why}", field="inputs")
