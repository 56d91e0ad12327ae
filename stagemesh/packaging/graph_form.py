"""The JSON form of a piece's graph. Structure only: which operations exist is `operators.py`'s business.

A graph is a list of operations in the order they run. Each has a name, under which later ones use its result.

    {"format": "stagemesh.graph", "version": 1,
     "takes": {"x": "x"},
     "weights": {"p_fc_weight": {"file": "piece-0.safetensors", "tensor": "fc.weight"}},
     "nodes": [{"name": "linear", "op": "aten.linear.default", "args": [{"value": "x"}, {"value": "p_fc_weight"}],
                "kwargs": {}}],
     "gives": {"linear": "linear"}}

An argument is null, true, false, a number, a string, a list of arguments, or one of `{"value": name}`,
`{"dtype": "F32"}`, `{"float": "inf"}`, `{"layout": "strided"}`, `{"memory_format": ...}` and `{"device": "own"}`,
which is wherever the piece runs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemesh.tensor import ITEM_BYTES

from .fields import Fields

FORMAT, VERSION = "stagemesh.graph", 1
MAX_NODES, MAX_DEPTH, MAX_LIST, MAX_TEXT = 200_000, 8, 65_536, 1024
MEMORY_FORMATS = ("contiguous", "preserve", "channels_last", "channels_last_3d")
FLOATS = ("inf", "-inf", "nan")
_VALUE = r"[A-Za-z_][A-Za-z0-9_.]*"
_OPERATION = r"[a-z_]+(\.[A-Za-z0-9_]+){0,2}"
_MARKS: dict[str, tuple[str, ...]] = {
    "dtype": tuple(ITEM_BYTES),
    "float": FLOATS,
    "layout": ("strided",),
    "memory_format": MEMORY_FORMATS,
    "device": ("own",),
}


@dataclass(frozen=True)
class Weight:
    """Where a tensor of a piece lies."""

    file: str
    tensor: str


@dataclass(frozen=True)
class Node:
    """One operation; arguments as in the JSON form."""

    name: str
    op: str
    args: list[Any]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A piece: boundary name -> value name for `takes` and `gives`, value name -> place for `weights`."""

    takes: dict[str, str]
    weights: dict[str, Weight]
    nodes: list[Node]
    gives: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """What `parse_graph` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "takes": self.takes,
            "weights": {
                name: {"file": weight.file, "tensor": weight.tensor} for name, weight in self.weights.items()
            },
            "nodes": [
                {"name": node.name, "op": node.op, "args": node.args, "kwargs": node.kwargs}
                for node in self.nodes
            ],
            "gives": self.gives,
        }


def parse_graph(raw: Mapping[str, Any], file: str) -> Graph:
    """Check a graph's JSON: every value has one name and is made before it is used, everything is bounded.

    Raises:
        CheckpointError: naming the file and the field.
    """
    top = Fields(raw, file)
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise top.wrong("format", f"must be {FORMAT!r}, version {VERSION}")
    known: set[str] = set()
    takes = _names(top, "takes")
    for boundary, value in takes.items():
        _define(known, value, top, f"takes.{boundary[:40]}")
    weights = {}
    for value, entry in top.table("weights", MAX_LIST).items():
        fields = top.at(f"weights.{value[:40]}", entry)
        weights[value] = Weight(fields.free_text("file", 64), fields.free_text("tensor", 512))
        _define(known, value, top, f"weights.{value[:40]}")
    nodes = [_node(fields, known) for fields in top.objects("nodes", MAX_NODES)]
    gives = _names(top, "gives")
    for boundary, value in gives.items():
        if value not in known:
            raise top.wrong(f"gives.{boundary[:40]}", f"no value {value[:40]!r}")
    return Graph(takes, weights, nodes, gives)


def _names(top: Fields, key: str) -> dict[str, str]:
    table = top.table(key, MAX_LIST)
    fields = top.at(key, table)
    return {boundary: fields.text(boundary, _VALUE) for boundary in table}


def _define(known: set[str], name: str, fields: Fields, key: str) -> None:
    if len(name) > 256 or not re.fullmatch(_VALUE, name):
        raise fields.wrong(key, "is no name of a value")
    if name in known:
        raise fields.wrong(key, f"two values are named {name[:40]!r}")
    known.add(name)


def _node(fields: Fields, known: set[str]) -> Node:
    name, op = fields.text("name", _VALUE), fields.text("op", _OPERATION)
    args, kwargs = fields.items("args", 64), fields.table("kwargs", 64)
    for index, value in enumerate(args):
        _argument(value, fields, f"args[{index}]", known, 0)
    for key, value in kwargs.items():
        if not key.isidentifier() or len(key) > 64:
            raise fields.wrong("kwargs", "has a key that is no name")
        _argument(value, fields, f"kwargs.{key}", known, 0)
    _define(known, name, fields, "name")
    return Node(name, op, args, kwargs)


def _argument(value: object, fields: Fields, key: str, known: set[str], depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise fields.wrong(key, "is beyond 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise fields.wrong(key, "is not a finite number")
    elif isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise fields.wrong(key, f"is longer than {MAX_TEXT} characters")
    elif isinstance(value, list):
        if depth >= MAX_DEPTH or len(value) > MAX_LIST:
            raise fields.wrong(key, "is too deep or too long a list")
        for index, item in enumerate(value):
            _argument(item, fields, f"{key}[{index}]", known, depth + 1)
    elif isinstance(value, dict) and len(value) == 1:
        ((mark, what),) = value.items()
        if not isinstance(what, str):
            raise fields.wrong(key, "is no argument")
        if mark == "value":
            if what not in known:
                raise fields.wrong(key, f"uses {what[:40]!r}, which is not made before")
        elif what not in _MARKS.get(mark, ()):
            raise fields.wrong(key, f"{mark[:20]!r}: {what[:20]!r} is no argument")
    else:
        raise fields.wrong(key, "is no argument")
