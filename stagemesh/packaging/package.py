"""`stagemesh.package`: a module becomes a folder that `stagemesh serve` can serve in stages."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.pipelining import SplitPoint

from stagemesh.errors import InvalidArgument

from .costs import Counted, cost_of
from .cuts import choose
from .export import BatchFixedError, Exported, export, output_names, ready, tensors_of
from .manifest import LONGEST_NAME, NAME, Manifest, read_manifest
from .order import Order
from .pieces import CutPiece, Splitter
from .prove import prove
from .write import save_examples, write_package

__all__ = ["package"]

# Pieces when nothing is said; a model can be served in as many stages as it has pieces, or fewer.
DEFAULT_PIECES = 8

Cuts = Sequence[str] | Mapping[str, SplitPoint]


def package(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor],
    out_dir: str | Path,
    *,
    stages: int | None = None,
    cuts: Cuts | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    name: str | None = None,
) -> Manifest:
    """Export a module, cut it into pieces and write them to a folder that holds no code and no pickle.

    The module is exported in evaluation mode and left as it was. Every input and output must have the batch as its
    first dimension. Before the folder is written its pieces are run and compared with the module; the example
    inputs are kept in it, so that each node can prove its pieces when it loads them.

    Args:
        module: any `torch.nn.Module` that `torch.export` can follow and that keeps no state between calls.
        example_inputs: tensors, positional (a tuple) or by parameter name (a mapping); two samples or more say
            the most.
        out_dir: a folder that does not exist yet, or is empty.
        stages: how many pieces; by default up to 8, as even as they can be by bytes and arithmetic. It can be
            served in any number of stages up to that.
        cuts: names of submodules to cut before, or what `torch.distributed.pipelining.pipeline` takes as its
            `split_spec`. `pipe_split()` calls in the module's own code are cut at too. Not with `stages`.
        input_names, output_names: on the wire; by default the parameters' names, and keys of a dict that the module
            returns, "output", or "output_0" and so on.
        dynamic_batch: serve any batch size. Where the module cannot, or where its samples depend on one another,
            a warning says why and only the example's batch is served.
        name: of the model; by default the class's name.

    Returns:
        What `manifest.json` says.

    Raises:
        InvalidArgument: naming the argument, when it or the module cannot be used.
    """
    folder = _empty(Path(out_dir))
    args, kwargs = _examples(module, example_inputs)
    if stages is not None and (cuts is not None or isinstance(stages, bool) or not 1 <= stages <= 1024):
        raise InvalidArgument("stages: must be from 1 to 1024, and not beside cuts", field="stages")
    spec = cuts if isinstance(cuts, Mapping) else dict.fromkeys(cuts or (), SplitPoint.BEGINNING)
    title = re.sub(r"[^A-Za-z0-9_.\-]", "-", name or type(module).__name__)[:LONGEST_NAME]

    folder.parent.mkdir(parents=True, exist_ok=True)
    with ready(module, spec), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".package-") as place:
        draft = Path(place)
        attempts: list[tuple[bool, str | None]] = [(False, "asked for")]
        if dynamic_batch:
            attempts.insert(0, (True, None))
        for dynamic, why_fixed in attempts:
            try:
                made = _Making(module, args, kwargs, dynamic, input_names, output_names)
                pieces = made.cut(stages, spec)
                write_package(
                    draft,
                    pieces,
                    made.outputs,
                    name=title,
                    example_batch=made.batch,
                    fixed_because=why_fixed,
                )
                save_examples(draft, prove(draft, read_manifest(draft), made.inputs, made.call))
                break
            except BatchFixedError as error:
                attempts[-1] = (False, str(error))
                warnings.warn(f"the batch of this package is fixed: {error}", stacklevel=2)
                for path in draft.iterdir():
                    path.unlink()
        manifest = read_manifest(draft)
        # Made beside its place and renamed, so that a half-written package has no name.
        if folder.exists():
            folder.rmdir()
        draft.chmod(0o755)
        shutil.move(draft, folder)
        draft.mkdir()
    return manifest


class _Making:
    """One attempt, with a dynamic batch or a fixed one."""

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[torch.Tensor, ...],
        kwargs: dict[str, torch.Tensor],
        dynamic: bool,
        input_names: Sequence[str] | None,
        names_out: Sequence[str] | None,
    ) -> None:
        given = [*args, *kwargs.values()]
        if dynamic and given[0].shape[0] == 1:
            # The exporter takes a size of one for a constant.
            args = tuple(torch.cat([tensor, tensor]) for tensor in args)
            kwargs = {key: torch.cat([tensor, tensor]) for key, tensor in kwargs.items()}
        self.inputs = [*args, *kwargs.values()]
        self.batch = self.inputs[0].shape[0]
        self._module, self._positional, self._keys = module, len(args), list(kwargs)
        result = self._result(self.inputs)
        self._check_outputs(tensors_of(result))
        self.exported: Exported = export(module, args, kwargs, dynamic)
        self._names = (
            _names("input_names", input_names, [node.name for node in self.exported.inputs]),
            _names("output_names", names_out, output_names(result)),
        )
        if dynamic:
            self._check_rows()

    def call(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The module itself; its inputs are copies, which it may write to."""
        return tensors_of(self._result(inputs))

    def cut(self, stages: int | None, named: Mapping[str, SplitPoint]) -> list[CutPiece]:
        """The pieces: at the marks when there are any, else balanced."""
        exported = self.exported
        order = Order(exported)
        if not order.operations:
            raise InvalidArgument("module: it computes nothing", field="module")
        counted = Counted(exported.program.graph_module)
        values = dict(zip(exported.inputs, self.inputs, strict=True))
        placeholders = [node for node in exported.program.graph.nodes if node.op == "placeholder"]
        state = exported.state
        counted.run(
            *(values[node].clone() if node in values else state[node.name][1] for node in placeholders)
        )
        crossing = order.crossing(counted)
        if stages is None and (order.marks or named):
            if len(order.marks) < len(named):
                raise InvalidArgument(
                    "cuts: some of these submodules are not called, or nothing is left before or after one",
                    field="cuts",
                )
            at = sorted({order.legal(mark, crossing) for mark in order.marks} - {len(order.operations)})
        else:
            weights = {node: _nbytes(state[node.name][1]) for node in placeholders if node.name in state}
            seen: set[torch.fx.Node] = set()
            costs = [cost_of(node, counted, weights, seen) for node in order.operations]
            found = choose(costs, crossing, stages, DEFAULT_PIECES)
            if found is None:
                raise InvalidArgument(
                    f"stages: the module cannot be cut into {stages}; it has {len(order.operations)} operations",
                    field="stages",
                )
            at = found
        splitter = Splitter(exported, order, counted, at, self._names)
        self.outputs = splitter.specs(self._names[1], order.outputs)
        return splitter.pieces()

    def _result(self, inputs: Sequence[torch.Tensor]) -> object:
        copies = [tensor.clone() for tensor in inputs]
        kwargs = dict(zip(self._keys, copies[self._positional :], strict=True))
        return self._module(*copies[: self._positional], **kwargs)

    def _check_outputs(self, outputs: Sequence[torch.Tensor]) -> None:
        for index, tensor in enumerate(outputs):
            if tensor.ndim == 0 or tensor.shape[0] != self.batch or not tensor.numel():
                raise InvalidArgument(
                    f"module: its output {index} is {list(tensor.shape)}; every output must have the batch "
                    f"({self.batch}) first and hold something",
                    field="module",
                )

    def _check_rows(self) -> None:
        for name, node in zip(self._names[1], self.exported.outputs, strict=True):
            first, *rest = node.meta["val"].shape
            if isinstance(first, int):
                raise BatchFixedError(f"output {name!r} has the same first dimension whatever the batch is")
            if not all(isinstance(size, int) for size in rest):
                raise BatchFixedError(
                    f"output {name!r} has a further dimension that depends on the batch or on values"
                )


def _examples(
    module: torch.nn.Module, given: tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgument("module: must be a torch.nn.Module", field="module")
    if isinstance(given, Mapping):
        named = {f"example_inputs[{key!r}]": tensor for key, tensor in given.items()}
    elif isinstance(given, tuple | list):
        named = {f"example_inputs[{index}]": tensor for index, tensor in enumerate(given)}
    else:
        raise InvalidArgument(
            "example_inputs: must be a tuple or a mapping of tensors", field="example_inputs"
        )
    batches = set()
    for where, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgument(f"{where}: must be a tensor", field="example_inputs")
        if tensor.ndim == 0 or not tensor.numel():
            raise InvalidArgument(
                f"{where}: must have the batch first and hold something", field="example_inputs"
            )
        batches.add(tensor.shape[0])
    if len(batches) != 1:
        raise InvalidArgument(
            f"example_inputs: all must have the same batch as their first dimension, not {sorted(batches)}",
            field="example_inputs",
        )
    # Contiguous as they come over the wire, and each an object of its own.
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in named.values()]
    if isinstance(given, Mapping):
        return (), dict(zip(given, copies, strict=True))
    return tuple(copies), {}


def _names(field: str, given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    names = list(default if given is None else given)
    if len(names) != len(default):
        raise InvalidArgument(f"{field}: {len(names)} names for {len(default)} tensors", field=field)
    for name in names:
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not re.fullmatch(NAME, name):
            raise InvalidArgument(f"{field}: {str(name)[:40]!r} cannot be a name", field=field)
    if len(set(names)) < len(names):
        raise InvalidArgument(f"{field}: names must differ", field=field)
    return names


def _empty(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgument("out_dir: must not exist yet, or be an empty folder", field="out_dir")
    return folder


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
