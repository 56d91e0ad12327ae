"""The partitions that a node keeps loaded although no assignment asks for them.

They take only memory that nothing else wants: they are not counted as used, and go before anything is refused for lack
of room, or when the machine itself runs short.
"""

import logging
import time
from typing import NamedTuple

import psutil

from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord

from .. import metrics
from ..partition.interface import Partition
from .keep import Keep

log = logging.getLogger(__name__)

# Of the node's memory, what is kept at most when no number is given.
SHARE = 0.5
# The machine runs short of memory when less than this part of it is available.
SHORT = 0.04


class Key(NamedTuple):
    """What must be equal for a loaded partition to be the one that is asked for."""

    checkpoint: str
    source: str
    task: str
    dtype: str
    first: int
    end: int

    @classmethod
    def of(cls, spec: ModelSpec, assignment: Assignment) -> "Key":
        """Of the partition that an assignment asks for; an assignment's revision is `<checkpoint>-<settings>`."""
        layers = assignment.partition
        return cls(
            assignment.revision.partition("-")[0],
            f"{spec.source}@{spec.hub_revision}",
            spec.task,
            spec.dtype,
            layers.first_layer,
            layers.end_layer,
        )


class Loaded(NamedTuple):
    """A partition in memory, and the seconds that it took to get there."""

    partition: Partition
    cost_s: float


class KeptPartitions:
    """What one node keeps; `record.keeps` says it to others, once it is announced.

    Args:
        record: of the node.
        keep_mb: MiB kept at most; negative: `SHARE` of the node's memory.
    """

    def __init__(self, record: NodeRecord, keep_mb: int) -> None:
        self._record = record
        self._limit = keep_mb * 2**20 if keep_mb >= 0 else int(record.memory_bytes * SHARE)
        self._keep: Keep[Key, Loaded] = Keep(self._limit)

    def __repr__(self) -> str:
        return f"<KeptPartitions {self._keep!r}>"

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return self._keep.bytes

    def put(self, key: Key, loaded: Loaded, room: int) -> bool:
        """Keep a partition that is not asked for any more; whether anything was given up for it.

        Args:
            key: which one it is.
            loaded: it.
            room: bytes that nothing else uses.
        """
        self._keep.limit = max(0, min(self._limit, room))
        gone = self._keep.put(key, loaded, loaded.partition.weight_bytes, loaded.cost_s, time.monotonic())
        self._account(len(gone), "room")
        return bool(gone)

    def take(self, key: Key) -> Loaded | None:
        """The partition, if it is kept; it is whoever asked for it's then."""
        found = self._keep.take(key)
        metrics.KEPT_ASKED.labels("hit" if found is not None else "miss").inc()
        self._account(0, "")
        return found

    def shrink(self, room: int) -> bool:
        """Keep no more than fits into `room` bytes; whether anything was given up."""
        gone = len(self._keep.shrink(room))
        self._account(gone, "needed")
        return bool(gone)

    def relieve(self) -> bool:
        """Give up what is worth least when the machine runs short of memory; whether anything was given up."""
        if not self._keep.bytes or self._record.device not in ("", "cpu"):
            return False
        memory = psutil.virtual_memory()
        short = int(memory.total * SHORT) - memory.available
        if short <= 0:
            return False
        gone = len(self._keep.shrink(self._keep.bytes - short))
        log.warning("kept.given_up: the machine runs short of memory")
        self._account(gone, "short")
        return bool(gone)

    def _account(self, gone: int, why: str) -> None:
        if gone:
            metrics.KEPT_GIVEN_UP.labels(why).inc(gone)
        metrics.KEPT_BYTES.set(self._keep.bytes)
        sizes = self._keep.sizes()
        del self._record.keeps[:]
        for key, nbytes in sizes.items():
            self._record.keeps.add(
                checkpoint=key.checkpoint,
                dtype=key.dtype,
                first_layer=key.first,
                end_layer=key.end,
                bytes=nbytes,
            )
