"""What a request came to when its answer was found here before: checked, tokenised, with its key. Pure.

The same bytes from the same tenant, with the same controls and to the same model as it is deployed now, come to the same: then
nothing of that needs to be done again to find that the router holds a copy of the answer. What has to be known of the
caller (who it is, what it may do) is not part of this, and whether an answer may be given is still decided by the copy.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from google.protobuf.message import Message

from stagemesh.v1.registry_pb2 import ModelSpec

from .controls import CacheControls

P = TypeVar("P")
MAX_BYTES = 8 * 2**20
MAX_REQUEST_BYTES = 2**20
_OVERHEAD = 1024

Mark = tuple[str, CacheControls, bytes]
"""Tenant, controls and the request itself: a dictionary compares it whole, and hashes it faster than a digest is made."""


class Prepared(Generic[P]):
    """Requests of one kind, within a byte budget; the least recently used goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[Mark, tuple[ModelSpec, P, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Prepared({len(self._known)} requests, {self._bytes} bytes)"

    def __len__(self) -> int:
        return len(self._known)

    def mark(self, request: Message, spec: ModelSpec, tenant: str, controls: CacheControls) -> Mark | None:
        """What the request is known by; None when no kept answer may be given, or it is too long to look."""
        if not spec.cache or not controls.lookup:
            return None
        data = request.SerializeToString(deterministic=True)
        if len(data) > MAX_REQUEST_BYTES:
            return None
        return tenant, controls, data

    def find(self, mark: Mark | None, spec: ModelSpec) -> P | None:
        """What it came to. `spec` is the model's record as it is now: another one, and everything is done anew."""
        known = self._known.get(mark) if mark is not None else None
        if known is None or mark is None:
            return None
        if known[0] is not spec:
            self._forget(mark)
            return None
        self._known.move_to_end(mark)
        return known[1]

    def keep(self, mark: Mark | None, spec: ModelSpec, prepared: P, nbytes: int = 0) -> None:
        """Remember it; `nbytes` is about what `prepared` takes."""
        if mark is None:
            return
        cost = nbytes + len(mark[2]) + _OVERHEAD
        if cost > self._max_bytes:
            return
        self._forget(mark)
        self._known[mark] = spec, prepared, cost
        self._bytes += cost
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._known)))

    def _forget(self, mark: Mark) -> None:
        known = self._known.pop(mark, None)
        if known is not None:
            self._bytes -= known[2]
