"""Keys and values in etcd: one place that knows their spelling.

Values are proto3 JSON, so that `etcdctl get --prefix /stagemesh/v1/` can be read by a person; fields that a
newer version added are ignored.
"""

import re
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from stagemesh.errors import InvalidArgument

ROOT = "/stagemesh/v1/"
MODELS = ROOT + "models/"
NODES = ROOT + "nodes/"
ASSIGNMENTS = ROOT + "assignments/"
REPLICAS = ROOT + "replicas/"
SERVICES = ROOT + "services/"
# What the autoscaler has decided, and what the registry did and why; events go by themselves after a while.
SCALES = ROOT + "scales/"
EVENTS = ROOT + "events/"
# What the registry has learned of when models are asked for: JSON of its own, written by the leader.
PRELOAD = ROOT + "preload/"
# How many nodes there should be.
CAPACITY = ROOT + "capacity"
INVALIDATIONS = ROOT + "invalidations/"
LEADER = ROOT + "leader"
# A random mark that the leading registry leaves in a store that has none: without it, or with another one, the store is new.
STORE = ROOT + "store"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

M = TypeVar("M", bound=Message)


def check_name(name: str, field: str = "name") -> str:
    """Return `name` if it can be part of a key, a metric label and a URL; else raise `InvalidArgument`."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{field}: {name[:80]!r} must start with a letter or digit, then letters, digits, '.', '_' or '-', "
            "63 characters at most",
            field=field,
        )
    return name


def model_key(name: str) -> str:
    """Key of a model's desired state."""
    return f"{MODELS}{name}"


def scale_key(name: str) -> str:
    """Key of the autoscaler's last decision on a model."""
    return f"{SCALES}{name}"


def event_key(unix_ms: int, mark: str) -> str:
    """Key of an event; `mark` tells events of one millisecond apart. Keys sort by time."""
    return f"{EVENTS}{unix_ms:013d}-{mark}"


def preload_key(name: str) -> str:
    """Key of what was learned of when a model is asked for."""
    return f"{PRELOAD}{name}"


def node_key(node_id: str) -> str:
    """Key of a node's record."""
    return f"{NODES}{node_id}"


def assignments_of(node_id: str) -> str:
    """Prefix of the assignments of one node."""
    return f"{ASSIGNMENTS}{node_id}/"


def assignment_key(node_id: str, replica_id: str) -> str:
    """Key of one assignment."""
    return f"{assignments_of(node_id)}{replica_id}"


def replica_key(model: str, stage: int, replica_id: str) -> str:
    """Key of one replica."""
    return f"{REPLICAS}{model}/{stage}/{replica_id}"


def service_key(kind: str, service_id: str) -> str:
    """Key of a router, cache or registry."""
    return f"{SERVICES}{kind}/{service_id}"


def invalidation_key(invalidation: str) -> str:
    """Key of something that caches were told to drop."""
    return f"{INVALIDATIONS}{invalidation}"


def to_json(record: Message) -> bytes:
    """Encode a record for etcd."""
    return json_format.MessageToJson(record, preserving_proto_field_name=True, indent=None).encode()


def from_json(value: bytes, kind: type[M]) -> M:
    """Decode a record; raise `ValueError` when it is not JSON of that kind."""
    try:
        return json_format.Parse(value, kind(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
