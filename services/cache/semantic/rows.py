"""The kept questions: which there are, within a byte budget, and which of them a question is like. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagemesh.invalidation import Selector
from stagemesh.v1.semantic_pb2 import SemanticKeepRequest, SemanticRow, SemanticScope

from .guards import Kind, compare
from .index import SemanticIndex, row_bytes
from .settings import Settings
from .words import Reading, read

NEIGHBOURS = 8
"""Of the most alike questions, how many are read: the nearest may deny what the next one asks."""
_OVERHEAD_BYTES = 1200
_BYTES_A_CHARACTER = 16
MOST_WRONG = 2
"""Answers of an entry that were wrong for others, after which it is given to nobody but those who ask the same."""

Partition = tuple[str, bytes]
Name = tuple[Partition, bytes]
Scope = tuple[str, str, str]


@dataclass(slots=True)
class Row:
    """A question whose answer was stored; `wrong_at` is the highest similarity at which its answer was wrong."""

    scope: Scope
    reading: Reading
    tags: frozenset[str]
    expires_at: float
    cost: int
    wrong: int = 0
    wrong_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A kept question that is near, how it relates, and why its answer may not be given for that, if so."""

    key: bytes
    similarity: float
    kind: Kind
    reason: str


class Rows:
    """Questions by (tenant, partition) and key; what was not asked for the longest goes first.

    `clock` gives Unix seconds. Not thread-safe.
    """

    def __init__(self, *, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self.evicted = 0
        self.changed: dict[Name, SemanticRow | None] = {}
        """What has to be written behind: rows that are new, and None for those that are gone."""
        self.faulted: dict[Name, tuple[int, float]] = {}
        """Of entries that were wrong since: how often, and at which similarity."""
        self._clock = clock
        self._index = SemanticIndex()
        self._rows: OrderedDict[Name, Row] = OrderedDict()
        self._by_tag: dict[str, set[Name]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Rows({len(self)} questions, {self.bytes_used} of {self.max_bytes} bytes)"

    def keep(
        self, request: SemanticKeepRequest, expires_at: float, *, wrong: int = 0, wrong_at: float = 0.0
    ) -> str:
        """Keep a checked question; "" or why not."""
        vector = np.frombuffer(request.vector, "<f4")
        cost = row_bytes(len(vector)) + _OVERHEAD_BYTES + _BYTES_A_CHARACTER * len(request.text)
        if cost > self.max_bytes:
            return "larger than the budget"
        reading = read(request.text)
        if not reading.forms:
            return "no words"
        partition = request.tenant, request.partition
        name = partition, request.key
        if name in self._rows:
            self._drop(name)
        try:
            self._index.add(partition, request.key, vector)
        except ValueError as error:
            return str(error)
        while self.bytes_used + cost > self.max_bytes:
            self._drop(next(iter(self._rows)))
            self.evicted += 1
        scope = scope_of(request.scope)
        row = Row(scope, reading, frozenset(request.tags), expires_at, cost, wrong, wrong_at)
        self._rows[name] = row
        for tag in row.tags:
            self._by_tag.setdefault(tag, set()).add(name)
        self.bytes_used += cost
        self.changed[name] = SemanticRow(kept=request, expires_unix_ms=int(expires_at * 1000))
        return ""

    def find(
        self, partition: Partition, vector: npt.NDArray[np.float32], text: str, settings: Settings
    ) -> tuple[Found | None, str]:
        """The most alike question that no guard takes out, or None and the reason of the nearest one's guard.

        Raises `ValueError` for a vector that has no direction or is of another length.
        """
        now = self._clock()
        asked: Reading | None = None
        refused = "nothing near"
        for near in self._index.nearest(partition, vector, NEIGHBOURS):
            if near.similarity < settings.min_similarity:
                break
            name = partition, near.key
            row = self._rows[name]
            if row.expires_at <= now:
                self._drop(name)
                continue
            asked = read(text) if asked is None else asked
            kind, why = compare(asked, row.reading)
            if kind is Kind.VETO or (kind is Kind.LOOSE and not settings.loose):
                refused = f"words: {why}" if refused == "nothing near" else refused
                continue
            reason = ""
            if row.wrong >= MOST_WRONG or (row.wrong and near.similarity <= row.wrong_at):
                reason = "wrong before"
            self._rows.move_to_end(name)
            return Found(near.key, min(near.similarity, 1.0), kind, reason), ""
        return None, refused

    def was_wrong(self, partition: Partition, key: bytes, similarity: float) -> None:
        """The answer of this entry was wrong for a question so alike."""
        row = self._rows.get((partition, key))
        if row is None:
            return
        row.wrong += 1
        row.wrong_at = max(row.wrong_at, similarity)
        self.faulted[partition, key] = row.wrong, row.wrong_at

    def invalidate(self, selector: Selector) -> int:
        """Drop what the selector fits; how many."""
        if selector.tags:
            rarest = min(selector.tags, key=lambda tag: len(self._by_tag.get(tag, ())))
            candidates: Iterable[Name] = self._by_tag.get(rarest, ())
        else:
            candidates = self._rows
        return self._drop_all(
            [name for name in candidates if selector.fits(name[0][0], self._rows[name].tags)]
        )

    def stale(self, model_tag: str, revision_tags: Iterable[str]) -> int:
        """Drop what has the model's tag and none of its revisions'; how many."""
        right = frozenset(revision_tags)
        held = self._by_tag.get(model_tag, set())
        return self._drop_all([name for name in held if not right & self._rows[name].tags])

    def expire(self, at_most: int = 1000) -> int:
        """Look at the `at_most` least recently used ones and drop those whose time has passed."""
        now = self._clock()
        oldest = [name for name, _ in zip(self._rows, range(at_most), strict=False)]
        return self._drop_all([name for name in oldest if self._rows[name].expires_at <= now])

    def of_scope(self, scope: Scope) -> tuple[int, int]:
        """How many questions of a scope there are, and their bytes."""
        held = self._by_tag.get(f"model:{scope[0]}", set())
        costs = [self._rows[name].cost for name in held if self._rows[name].scope == scope]
        return len(costs), sum(costs)

    def _drop_all(self, names: list[Name]) -> int:
        for name in names:
            self._drop(name)
        return len(names)

    def _drop(self, name: Name) -> None:
        row = self._rows.pop(name)
        self.bytes_used -= row.cost
        self._index.discard(*name)
        for tag in row.tags:
            holders = self._by_tag[tag]
            holders.discard(name)
            if not holders:
                del self._by_tag[tag]
        self.changed[name] = None
        self.faulted.pop(name, None)


def scope_of(given: SemanticScope) -> Scope:
    """What evidence belongs to, as a key."""
    return given.model, given.revision, given.encoder
