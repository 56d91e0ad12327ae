"""From a module and examples to a functional graph of allowed operators, with `torch.export`.

In-place operations become functional ones here, before anything is cut: over a link two values that share memory would
be two copies, and a write to one would not be seen in the other.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.pipelining import SplitPoint, pipe_split
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from stagemesh.errors import InvalidArgument

from .operators import KEPT

# What `pipe_split()` leaves in an exported graph.
MARK = torch.ops.pippy._pipe_split.default


class BatchFixedError(Exception):
    """The module cannot have its batch dynamic; the message says why in one line."""


@dataclass(frozen=True)
class Exported:
    """A module's graph.

    Attributes:
        program: functional, its operators decomposed as far as `operators.KEPT` wants.
        inputs: placeholder of each input, in order.
        outputs: node of each output, in order.
        state: placeholder name -> (name in the module, tensor).
    """

    program: ExportedProgram
    inputs: list[torch.fx.Node]
    outputs: list[torch.fx.Node]
    state: dict[str, tuple[str, torch.Tensor]]


@contextlib.contextmanager
def ready(module: torch.nn.Module, cuts: Mapping[str, SplitPoint]) -> Iterator[None]:
    """The module in evaluation mode, with `pipe_split()` at the named submodules; afterwards as it was.

    Raises:
        InvalidArgument: a name is not that of a submodule.
    """
    submodules = dict(module.named_modules())
    for name in cuts:
        if not name or name not in submodules:
            raise InvalidArgument(f"cuts: the module has no submodule {name[:80]!r}", field="cuts")
    training = [(part, part.training) for part in module.modules()]
    hooks = []
    try:
        module.eval()
        for name, where in cuts.items():
            if where is SplitPoint.BEGINNING:
                hooks.append(submodules[name].register_forward_pre_hook(lambda *_: pipe_split()))
            else:
                hooks.append(submodules[name].register_forward_hook(lambda *_: pipe_split()))
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, was in training:
            part.training = was


def export(
    module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], dynamic: bool
) -> Exported:
    """Export a module that is `ready`.

    Raises:
        BatchFixedError: `dynamic` was asked for, and the exporter says that it cannot be.
        InvalidArgument: the module cannot be exported, or keeps state between calls.
    """
    shapes = None
    if dynamic:
        shapes, batch = ShapesCollection(), Dim("batch")
        for tensor in (*args, *kwargs.values()):
            shapes[tensor] = {0: batch}
    try:
        with warnings.catch_warnings():
            # The exporter's own, about its own code and about recurrent layers' lists of weights.
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            program = torch.export.export(module, args, kwargs or None, dynamic_shapes=shapes)
            program = program.run_decompositions(_decompositions())
    except Exception as error:
        # Exporting runs the module's own code: whatever that raises ends here, and is told to the caller.
        if dynamic:
            raise BatchFixedError(f"torch.export: {_line(error)}") from error
        raise InvalidArgument(
            f"module: torch.export cannot follow it: {type(error).__name__}: {_line(error)}", field="module"
        ) from error
    return _described(program)


def output_names(result: Any) -> list[str]:
    """Names for the tensors of a module's result: keys of a dict, else "output" or "output_<i>"."""
    paths = [path for path, leaf in pytree.tree_flatten_with_path(result)[0] if leaf is not None]
    names = [
        "_".join(str(step.key) for step in path if isinstance(step, pytree.MappingKey)) or f"output_{index}"
        for index, path in enumerate(paths)
    ]
    if len(paths) == 1 and not isinstance(result, Mapping):
        return ["output"]
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors of a module's result, in the order of `output_names`.

    Raises:
        InvalidArgument: it holds something that is no tensor.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            raise InvalidArgument(
                f"module: it returns a {type(leaf).__name__} beside tensors; return tensors only",
                field="module",
            )
    if not leaves:
        raise InvalidArgument("module: it returns no tensor", field="module")
    return leaves


def _decompositions() -> Any:
    table = torch.export.default_decompositions()
    for overload in list(table):
        if overload.namespace == "aten" and overload._schema.name.removeprefix("aten::") in KEPT:
            del table[overload]
    return table


def _described(program: ExportedProgram) -> Exported:
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    if signature.buffers_to_mutate:
        names = ", ".join(sorted(signature.buffers_to_mutate.values()))[:200]
        raise InvalidArgument(
            f"module: a call changes its buffers ({names}); what is served must keep no state", field="module"
        )
    state = {
        node: (name, program.state_dict[name] if name in program.state_dict else program.constants[name])
        for node, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
    }
    for node, name in signature.inputs_to_lifted_tensor_constants.items():
        state[node] = (name, program.constants[name])
    inputs = [nodes[name] for name in signature.user_inputs if isinstance(name, str)]
    outputs = [nodes[name] for name in signature.user_outputs if isinstance(name, str)]
    return Exported(program, inputs, outputs, state)


def _line(error: Exception) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
