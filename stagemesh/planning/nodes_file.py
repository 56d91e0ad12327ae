"""Nodes, links and pins for `stagemesh plan`, from a YAML file; every fault is told at once, with its field."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stagemesh.errors import InvalidArgument

from .fleet import Link, Links, Node, Speed
from .goal import Pin

__all__ = ["NodesFile", "read_nodes"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")
MOST_NODES = 10_000


@dataclass(frozen=True)
class NodesFile:
    """What the file says; pins are in the file's own words until the model's layers are known."""

    nodes: tuple[Node, ...]
    links: Links
    _pins: tuple["_Pin", ...]

    def pins(self, layers: int) -> tuple[Pin, ...]:
        """For a model of so many layers. "first" is layer 0, "last" the last one."""
        return tuple(
            Pin(*_range(pin.layers, layers), pin.zone, pin.labels, tuple(pin.nodes)) for pin in self._pins
        )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Node(_Strict):
    name: str = Field(min_length=1, max_length=63)
    count: int = Field(1, ge=1, le=MOST_NODES)
    device: str = Field("cpu", pattern=r"^(cpu|cuda)(:\d+)?$")
    memory: int = Field(gt=0)
    gflops: float = Field(0.0, ge=0)
    memory_gbps: float = Field(0.0, ge=0)
    ms_per_layer: dict[int, float] = Field(default_factory=dict)
    overhead_ms: float = Field(0.0, ge=0)
    network_gbit: float = Field(0.0, ge=0)
    zone: str = Field("", max_length=63)
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: object) -> object:
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if isinstance(value, str) and not found:
            raise ValueError("must be bytes, or a number with a unit such as 24GiB or 500MB")
        return int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else value

    @field_validator("ms_per_layer")
    @classmethod
    def _measured(cls, value: dict[int, float]) -> dict[int, float]:
        if any(rows < 1 or ms <= 0 for rows, ms in value.items()):
            raise ValueError("must map rows of a pass (1 or more) to milliseconds (more than 0)")
        return value

    @model_validator(mode="after")
    def _has_speed(self) -> "_Node":
        if not self.ms_per_layer and not (self.gflops and self.memory_gbps):
            raise ValueError("needs ms_per_layer, or gflops and memory_gbps")
        return self


class _Link(_Strict):
    rtt_ms: float = Field(0.0, ge=0)
    gbit: float = Field(0.0, ge=0)

    def link(self) -> Link:
        return Link(self.rtt_ms, self.gbit)


class _Pair(_Link):
    zones: tuple[str, str]


class _Links(_Strict):
    within: _Link = Field(default_factory=lambda: _Link.model_validate({}))
    across: _Link = Field(default_factory=lambda: _Link.model_validate({}))
    pairs: list[_Pair] = Field(default_factory=list)


class _Pin(_Strict):
    layers: str
    zone: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    nodes: list[str] = Field(default_factory=list)

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: object) -> object:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and text not in ("first", "last") and not _LAYERS.fullmatch(text):
            raise ValueError("must be first, last, a layer such as 3, or layers such as 0-7")
        return text

    @model_validator(mode="after")
    def _has_place(self) -> "_Pin":
        if not (self.zone or self.labels or self.nodes):
            raise ValueError("needs a zone, labels or nodes")
        return self


class _File(_Strict):
    nodes: list[_Node] = Field(min_length=1)
    links: _Links = Field(default_factory=_Links)
    pins: list[_Pin] = Field(default_factory=list)


def read_nodes(text: str) -> NodesFile:
    """Parse the file's text.

    Raises:
        InvalidArgument: every fault, one a line, each after its field (`nodes[1].memory`).
    """
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InvalidArgument(f"nodes file: not YAML{where}", field="nodes") from None
    if not isinstance(content, dict):
        raise InvalidArgument("nodes file: must hold `nodes:` and a list", field="nodes")
    try:
        parsed = _File.model_validate(content)
    except ValidationError as error:
        faults = [_fault(item) for item in error.errors(include_url=False)]
        raise InvalidArgument("\n".join(faults), field=faults[0].partition(":")[0]) from None
    nodes = tuple(_one(node, nth) for node in parsed.nodes for nth in range(node.count))
    faults = [*_doubled(nodes), *_unknown(parsed, nodes)]
    if len(nodes) > MOST_NODES:
        faults.append(f"nodes: {len(nodes)} are more than {MOST_NODES}")
    if faults:
        raise InvalidArgument("\n".join(faults), field=faults[0].partition(":")[0])
    pairs = {pair.zones: pair.link() for pair in parsed.links.pairs}
    links = Links(parsed.links.within.link(), parsed.links.across.link(), pairs)
    return NodesFile(nodes, links, tuple(parsed.pins))


def _one(node: _Node, nth: int) -> Node:
    return Node(
        name=node.name if node.count == 1 else f"{node.name}-{nth + 1}",
        memory_bytes=node.memory,
        speed=Speed(node.ms_per_layer, node.gflops, node.memory_gbps, node.overhead_ms),
        device=node.device.partition(":")[0],
        zone=node.zone,
        labels=node.labels,
        network_gbit=node.network_gbit,
    )


def _doubled(nodes: tuple[Node, ...]) -> list[str]:
    seen: dict[str, int] = {}
    for node in nodes:
        seen[node.name] = seen.get(node.name, 0) + 1
    return [f"nodes: the name {name!r} is given {times} times" for name, times in seen.items() if times > 1]


def _unknown(parsed: _File, nodes: tuple[Node, ...]) -> list[str]:
    """Names of zones and nodes that nothing has: a slip of the pen, which would silently do nothing."""
    zones, names = {node.zone for node in nodes}, {node.name for node in nodes}
    faults = [
        f"links.pairs[{index}].zones: no node is in zone {zone!r}"
        for index, pair in enumerate(parsed.links.pairs)
        for zone in pair.zones
        if zone not in zones
    ]
    for index, pin in enumerate(parsed.pins):
        if pin.zone and pin.zone not in zones:
            faults.append(f"pins[{index}].zone: no node is in zone {pin.zone!r}")
        faults += [
            f"pins[{index}].nodes: there is no node {name!r}" for name in pin.nodes if name not in names
        ]
    return faults


def _range(text: str, layers: int) -> tuple[int, int]:
    if text == "first":
        return 0, 1
    if text == "last":
        return layers - 1, layers
    found = _LAYERS.fullmatch(text)
    assert found is not None  # checked when it was read
    return int(found[1]), int(found[2] or found[1]) + 1


def _fault(item: Mapping[str, Any]) -> str:
    where = ""
    for part in item["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = str(item["msg"]).removeprefix("Value error, ")
    given = item.get("input")
    shown = f", got {str(given)[:60]!r}" if isinstance(given, str | int | float) else ""
    return f"{where or 'nodes file'}: {message[:1].lower()}{message[1:]}{shown}"
