"""What a model's own forward does around its loop over the layers, read from its source.

For models without a published pipeline plan. A cut between two layers is right when the hidden state is all that goes
from one layer to the next: everything that a forward does otherwise is refused here, with the reason.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# What a forward may ask of its embeddings for each partition to come to the same answer.
_SHAPE = frozenset({"shape", "size", "device", "dtype", "ndim", "dim", "new_zeros"})
# Functions and modules that look only at the shape and type of the hidden state they are given.
_SHAPE_ONLY = ("mask", "rotary")
# Variables that collect what a caller may ask for besides the result.
_COLLECTS = ("all_", "router_logits")


class NotUnderstoodError(Exception):
    """The forward may do something that a cut would break."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Attributes of the module that its forward mentions before, in and after its loop over the layers."""

    before: frozenset[str]
    within: frozenset[str]
    after: frozenset[str]


def read_loop(forward: Callable[..., Any], layers: str, rotary: frozenset[str]) -> Loop:
    """Read a forward and make sure that it can be cut between any two layers.

    Args:
        forward: of the module that holds the layers.
        layers: the attribute that holds them.
        rotary: attributes with modules that make rotary positions.

    Raises:
        NotUnderstoodError: with what stands in the way, in words for an error message.
    """
    body = _body(forward)
    loops = [node for node in body if isinstance(node, ast.For) and layers in _mentioned([node.iter])]
    if len(loops) != 1:
        raise NotUnderstoodError(f"its forward has no single loop over {layers!r}")
    index = body.index(loops[0])
    before, loop, after = body[:index], loops[0], body[index + 1 :]
    if layers in _mentioned(before) | _mentioned(loop.body) | _mentioned(after):
        raise NotUnderstoodError(f"its forward uses {layers!r} outside of its loop")
    call, position = _layer_call(loop)
    hidden = _hidden(loop, call)
    tainted = _tainted(before, rotary)
    _check_layer_arguments(loop, call, position, hidden, tainted)
    _check_after(after, loop, hidden, tainted, rotary)
    return Loop(_mentioned(before), _mentioned(loop.body), _mentioned(after))


def _body(forward: Callable[..., Any]) -> list[ast.stmt]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError) as error:
        raise NotUnderstoodError("its forward's source is not there") from error
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):
        raise NotUnderstoodError("its forward is not a plain function")
    return function.body


def _mentioned(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """Attributes of `self`."""
    return frozenset(
        node.attr
        for top in nodes
        for node in ast.walk(top)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    )


def _layer_call(loop: ast.For) -> tuple[ast.Call, int]:
    """The call of a layer, and which statement of the loop's body it is in."""
    target = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
    if not isinstance(target, ast.Name):
        raise NotUnderstoodError("its loop does not name the layer")
    calls = [
        (node, position)
        for position, statement in enumerate(loop.body)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == target.id
    ]
    if len(calls) != 1 or not isinstance(loop.body[calls[0][1]], ast.Assign):
        raise NotUnderstoodError("its loop does not call each layer once")
    return calls[0]


def _hidden(loop: ast.For, call: ast.Call) -> str:
    """The variable with the hidden state: the layer's first argument and its first result."""
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "hidden_states")][:1]
    if not given or not isinstance(given[0], ast.Name):
        raise NotUnderstoodError("its layers are not given the hidden state first")
    hidden = given[0].id
    results: set[str] = set()
    writes = 0
    for statement in loop.body:
        if not isinstance(statement, ast.Assign):
            writes += hidden in set(_stored([statement]))
            continue
        target, value = statement.targets[0], statement.value
        first = target.elts[0] if isinstance(target, ast.Tuple) else target
        name = first.id if isinstance(first, ast.Name) else ""
        of_results = (
            isinstance(value, ast.Subscript)
            and isinstance(value.value, ast.Name)
            and value.value.id in results
            and isinstance(value.slice, ast.Constant)
            and value.slice.value == 0
        )
        if value is call and name != hidden:
            results.add(name)
        if hidden in set(_stored([statement])):
            writes += 1 if name == hidden and (value is call or of_results) else 2
    if writes != 1:
        raise NotUnderstoodError("its loop does more with the hidden state than to give it to the next layer")
    return hidden


def _check_layer_arguments(
    loop: ast.For, call: ast.Call, position: int, hidden: str, tainted: set[str]
) -> None:
    """Everything else that a layer is given must be the same on every partition."""
    taken = set(_loaded([*call.args, *(word.value for word in call.keywords)])) - {hidden}
    for statement in reversed(loop.body[:position]):
        if isinstance(statement, ast.Assign) and taken & set(_stored([statement])):
            taken |= set(_loaded([statement.value]))
    carried = taken & (set(_stored(loop.body[position:])) - {hidden})
    if carried:
        raise NotUnderstoodError(f"its layers pass on {min(carried)!r} besides the hidden state")
    if taken & tainted:
        raise NotUnderstoodError(f"its layers are given {min(taken & tainted)!r}, made from the embeddings")
    for node in loop.body:
        for found in ast.walk(node):
            if isinstance(found, ast.Attribute) and isinstance(found.ctx, ast.Store):
                raise NotUnderstoodError("its loop keeps something on the model")


def _check_after(
    after: list[ast.stmt], loop: ast.For, hidden: str, tainted: set[str], rotary: frozenset[str]
) -> None:
    """What follows the loop may use nothing that only an earlier partition knows."""
    kept = set(_stored(loop.body)) | (tainted - {hidden})
    kept -= {hidden, *_stored([loop.target])}
    wrong = {name for name in kept if not name.startswith(_COLLECTS)}
    for statement in after:
        for node in ast.walk(statement):
            value = getattr(node, "value", None)
            if not isinstance(node, ast.Assign | ast.Return) or value is None or _collects(node):
                continue
            if any(name in wrong for name in _values(value, rotary)):
                raise NotUnderstoodError("after its layers it uses more than the last hidden state")


def _collects(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and all(name.startswith(_COLLECTS) for name in _stored([node]))


def _tainted(before: list[ast.stmt], rotary: frozenset[str]) -> set[str]:
    """Variables with values of the embeddings in them, or of the tokens."""
    tainted = {"input_ids", "inputs_embeds"}
    for statement in before:
        for node in ast.walk(statement):
            value = getattr(node, "value", None)
            if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) or value is None:
                continue
            if any(name in tainted for name in _values(value, rotary)):
                tainted |= set(_stored([node]))
    return tainted


def _values(node: ast.AST, rotary: frozenset[str]) -> Iterator[str]:
    """Variables whose values (and not only shapes) an expression is made of."""
    if isinstance(node, ast.Name):
        yield node.id
        return
    if isinstance(node, ast.Attribute) and node.attr in _SHAPE:
        return
    if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        return
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _SHAPE or name in rotary or any(word in name for word in _SHAPE_ONLY):
            return
    for child in ast.iter_child_nodes(node):
        yield from _values(child, rotary)


def _loaded(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield node.id


def _stored(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Variables that statements write, or write into."""
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                yield from _loaded([node.value])
