"""Which kept answers an invalidation drops, and what was dropped lately: for caches, and for routers that keep copies. Pure."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from stagemesh.errors import InvalidArgument
from stagemesh.v1.cache_pb2 import CacheInvalidateRequest

MAX_TAGS = 16
MAX_TAG = 256


@dataclass(frozen=True, slots=True)
class Selector:
    """Fits an entry of `tenant` ("": any) that has all `tags` and, if given, one that begins with `prefix`."""

    tenant: str = ""
    tags: frozenset[str] = frozenset()
    prefix: str = ""

    def fits(self, tenant: str, tags: Collection[str]) -> bool:
        """Whether an entry of that tenant with these tags is meant."""
        return (
            self.tenant in ("", tenant)
            and all(tag in tags for tag in self.tags)
            and (not self.prefix or any(tag.startswith(self.prefix) for tag in tags))
        )


def selector_of(request: CacheInvalidateRequest) -> Selector:
    """The selector of a request; raises `InvalidArgument` naming the field."""
    tags = {*request.tags, *([request.tag] if request.tag else [])}
    if len(tags) > MAX_TAGS or any(not 0 < len(tag) <= MAX_TAG for tag in tags):
        raise InvalidArgument(f"tags: at most {MAX_TAGS}, of 1 to {MAX_TAG} characters", field="tags")
    if len(request.prefix) > MAX_TAG:
        raise InvalidArgument(f"prefix: at most {MAX_TAG} characters", field="prefix")
    return Selector(request.tenant, frozenset(tags), request.prefix)


class Lately:
    """Invalidations heard lately: an answer that was begun before one of them must not be stored after it.

    Those older than `keep_s` seconds, and all but the last `at_most`, count as if they had meant everything.
    """

    def __init__(self, *, keep_s: float, at_most: int) -> None:
        self._keep_s = keep_s
        self._at_most = at_most
        self._heard: deque[tuple[float, Selector]] = deque()
        self._all_until = float("-inf")

    def __repr__(self) -> str:
        return f"Lately({len(self._heard)})"

    def add(self, selector: Selector, now: float) -> None:
        """Heard now."""
        self._heard.append((now, selector))
        while len(self._heard) > self._at_most or now - self._heard[0][0] > self._keep_s:
            self._all_until = self._heard.popleft()[0]

    def covers(self, tenant: str, tags: Collection[str], begun_at: float) -> bool:
        """Whether an answer that was begun at `begun_at` has been invalidated since."""
        if begun_at <= self._all_until:
            return True
        for at, selector in reversed(self._heard):
            if at < begun_at:
                return False
            if selector.fits(tenant, tags):
                return True
        return False
