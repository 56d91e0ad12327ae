"""Pins in words: which layers may only lie where. Pure."""

import re

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import PlacementPin

from .goal import Pin

__all__ = ["layers_of", "parse_pin", "pin_of"]

_LAYERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def layers_of(text: str, layers: int) -> tuple[int, int]:
    """The half-open range of "first", "last", a layer, or layers such as "0-7", of a model with so many.

    Raises `InvalidArgument` naming `pins`.
    """
    if text == "first":
        return 0, 1
    if text == "last":
        return layers - 1, layers
    found = _LAYERS.fullmatch(text)
    if not found:
        raise InvalidArgument(
            f"pins: {text[:40]!r} is not first, last, a layer such as 3, or layers such as 0-7", field="pins"
        )
    first, end = int(found[1]), int(found[2] or found[1]) + 1
    if not first < end <= layers:
        raise InvalidArgument(f"pins: the model's {layers} layers have no {text[:40]}", field="pins")
    return first, end


def pin_of(pin: PlacementPin, layers: int) -> Pin:
    """A record's pin for the planner. Raises `InvalidArgument` naming `pins`."""
    first, end = layers_of(pin.layers, layers)
    if not (pin.zone or pin.node_labels or pin.nodes):
        raise InvalidArgument(f"pins: {pin.layers[:40]!r} needs a zone, labels or nodes", field="pins")
    return Pin(first, end, pin.zone, dict(pin.node_labels), tuple(pin.nodes))


def parse_pin(text: str) -> PlacementPin:
    """`LAYERS=zone:Z`, `LAYERS=label:KEY:VALUE` or `LAYERS=node:N`, as the command line has it.

    Raises `InvalidArgument` naming `pins`.
    """
    layers, _, place = text.partition("=")
    kind, _, value = place.partition(":")
    key, _, label = value.partition(":")
    if layers and kind == "zone" and value:
        return PlacementPin(layers=layers, zone=value)
    if layers and kind == "node" and value:
        return PlacementPin(layers=layers, nodes=[value])
    if layers and kind == "label" and key and label:
        return PlacementPin(layers=layers, node_labels={key: label})
    raise InvalidArgument(
        f"pins: {text[:60]!r} is not LAYERS=zone:ZONE, LAYERS=label:KEY:VALUE or LAYERS=node:NODE",
        field="pins",
    )
