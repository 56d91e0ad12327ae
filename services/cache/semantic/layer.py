"""The semantic layer of one cache: finds, decides, learns and reports. Pure; one thread uses it, away from the loop.

The way of a question that has no exact answer:

1. `find`: the nearest kept questions of its own partition (`rows.py`, `index.py`), the first that no guard takes out
   (`guards.py`, `words.py`).
2. Its answer is given only while the bound of the false-hit rate of such pairs is within what the operator allows
   (`evidence.py`, `bounds.py`), and it was not wrong for another question so alike before.
3. `judge`: a share of what was given is computed for real afterwards, and what was not given is computed anyway. The two
   answers are compared (`judge.py`), and the result is evidence.
4. Verified errors past what is allowed turn the layer off and drop the evidence (`monitor.py`, `scope.py`); it goes on
   learning, and serves again once new evidence allows it or the operator says so.
"""

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stagemesh.invalidation import Selector
from stagemesh.v1 import semantic_pb2 as pb
from stagemesh.v1.registry_pb2 import Semantic

from .guards import Kind
from .judge import same_answer
from .rows import Name, Rows, Scope, scope_of
from .scope import ScopeState, restored
from .settings import settings_of
from .usage import Usage

log = logging.getLogger(__name__)
MAX_SCOPES = 256


@dataclass(frozen=True, slots=True)
class Changes:
    """What has to be written behind; None is gone."""

    rows: dict[Name, pb.SemanticRow | None]
    faults: dict[Name, tuple[int, float]]
    states: dict[Scope, pb.SemanticState | None]
    usage: list[pb.CacheUsage]

    def __bool__(self) -> bool:
        return bool(self.rows or self.faults or self.states or self.usage)


@dataclass(frozen=True, slots=True)
class Saved:
    """What was found behind."""

    rows: list[pb.SemanticRow] = field(default_factory=list)
    faults: dict[Name, tuple[int, float]] = field(default_factory=dict)
    states: list[pb.SemanticState] = field(default_factory=list)
    usage: list[pb.CacheUsage] = field(default_factory=list)


class SemanticLayer:
    """`clock` gives Unix seconds; `rng` draws which hits are verified."""

    def __init__(
        self,
        *,
        max_bytes: int,
        default_ttl_s: int,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.rows = Rows(max_bytes=max_bytes, clock=clock)
        self.scopes: dict[Scope, ScopeState] = {}
        self.usage = Usage(clock)
        self._default_ttl_s = default_ttl_s
        self._clock = clock
        self._rng = rng
        self._dirty: set[Scope] = set()

    def __repr__(self) -> str:
        return f"SemanticLayer({self.rows!r}, {list(self.scopes.values())})"

    def find(self, request: pb.SemanticFindRequest) -> pb.SemanticFindResponse:
        """The kept question most like this one, and whether its answer may be given."""
        settings = settings_of(request.settings)
        state = self._state(request.scope, request.settings)
        state.finds += 1
        vector = np.frombuffer(request.vector, "<f4")
        try:
            found, refused = self.rows.find(
                (request.tenant, request.partition), vector, request.text, settings
            )
        except ValueError as error:
            found, refused = None, f"vector: {error}"
        if found is None:
            state.refused[refused] += 1
            return pb.SemanticFindResponse(reason=refused)
        serve, bound, reason = state.decide(found.kind, found.similarity)
        if found.reason:
            serve, reason = False, found.reason
        if serve:
            state.served += 1
        else:
            state.refused[reason] += 1
        return pb.SemanticFindResponse(
            key=found.key,
            similarity=found.similarity,
            kind=found.kind,
            serve=serve,
            false_hit_bound=bound,
            reason=reason,
            judge=self._rng.random() < settings.verify_share if serve else not found.reason,
        )

    def keep(self, request: pb.SemanticKeepRequest) -> pb.SemanticKeepResponse:
        """A question whose answer was stored."""
        expires_at = self._clock() + (request.ttl_s or self._default_ttl_s)
        # What an entry has got wrong is forgotten with its answer: another one may be right.
        reason = self.rows.keep(request, expires_at)
        return pb.SemanticKeepResponse(kept=not reason, reason=reason)

    def judge(self, request: pb.SemanticJudgeRequest) -> pb.SemanticJudgeResponse:
        """Compare two answers, and learn from it."""
        state = self._state(request.scope, request.settings)
        same, reason = same_answer(
            request.kept_answer,
            request.real_answer,
            _vector(request.kept_vector),
            _vector(request.real_vector),
        )
        state.learn(Kind(request.kind), request.similarity, wrong=not same, served=request.served)
        if not same:
            self.rows.was_wrong((request.tenant, request.partition), request.key, request.similarity)
        return pb.SemanticJudgeResponse(same=same, reason=reason)

    def count(self, request: pb.CacheUsageRequest) -> None:
        """What routers answered from the caches."""
        for each in request.usage:
            self.usage.add(each)

    def report(self, model: str = "") -> pb.CacheReport:
        """What is known of a model, or of each."""
        names = {*self.usage.models, *(scope[0] for scope in self.scopes)}
        found = pb.CacheReport()
        for name in sorted(names if not model else names & {model}):
            one = found.models.add()
            self.usage.write(name, one)
            # Of several revisions, the one that was asked for last.
            held = [state for scope, state in self.scopes.items() if scope[0] == name]
            if held:
                state = max(held, key=lambda each: each.used_at)
                one.semantic.CopyFrom(state.report(*self.rows.of_scope(state.scope)))
        return found

    def switch(self, request: pb.SemanticSwitchRequest) -> int:
        """What the operator orders for every revision of a model; for how many that was."""
        held = [state for scope, state in self.scopes.items() if scope[0] == request.model]
        for state in held:
            if request.order == pb.SEMANTIC_ORDER_OFF:
                state.order_off()
            elif request.order == pb.SEMANTIC_ORDER_ON:
                state.order_on()
            elif request.order == pb.SEMANTIC_ORDER_RESET:
                state.reset()
            self._dirty.add(state.scope)
            log.warning("cache.semantic_ordered model=%s state=%s", request.model, state.state)
        return len(held)

    # ---- validity ----

    def invalidate(self, selector: Selector) -> int:
        """Drop the questions that the selector fits."""
        return self.rows.invalidate(selector)

    def deployed(self, model: str, revisions: Iterable[str]) -> int:
        """A model is deployed in these revisions: questions of any other are dropped, and what was known of them."""
        kept = set(revisions)
        for scope in [scope for scope in self.scopes if scope[0] == model and scope[1] not in kept]:
            del self.scopes[scope]
            self._dirty.add(scope)
        return self.rows.stale(f"model:{model}", [f"revision:{each}" for each in kept])

    # ---- what lies behind ----

    def restore(self, saved: Saved) -> None:
        """What was saved before; nothing of it counts as changed. Raises `ValueError` for what cannot be."""
        now = self._clock()
        for row in saved.rows:
            if now * 1000 < row.expires_unix_ms:
                name = (row.kept.tenant, row.kept.partition), row.kept.key
                wrong, wrong_at = saved.faults.get(name, (0, 0.0))
                self.rows.keep(row.kept, row.expires_unix_ms / 1000, wrong=wrong, wrong_at=wrong_at)
        # Those for which there is no room are gone from the file as well.
        self.rows.changed = {name: None for name, row in self.rows.changed.items() if row is None}
        for each in saved.states:
            state = restored(each)
            self.scopes[state.scope] = state
        for usage in saved.usage:
            self.usage.restore(usage)

    def take_changes(self) -> Changes:
        """What has changed since the last call."""
        rows, self.rows.changed = self.rows.changed, {}
        faults, self.rows.faulted = self.rows.faulted, {}
        dirty, self._dirty = self._dirty, set()
        states = {scope: self.scopes[scope].save() if scope in self.scopes else None for scope in dirty}
        return Changes(rows, faults, states, self.usage.take_changes())

    def _state(self, given: pb.SemanticScope, settings: Semantic) -> ScopeState:
        scope = scope_of(given)
        state = self.scopes.get(scope)
        if state is None:
            if len(self.scopes) >= MAX_SCOPES:
                oldest = min(self.scopes.values(), key=lambda each: each.used_at).scope
                del self.scopes[oldest]
                self._dirty.add(oldest)
            state = self.scopes[scope] = ScopeState(scope, settings_of(settings))
        state.use(settings_of(settings), self._clock())
        self._dirty.add(scope)
        return state


def _vector(data: bytes) -> npt.NDArray[np.float32] | None:
    return np.frombuffer(data, "<f4") if data else None
