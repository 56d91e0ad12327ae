"""Which revision of a model a request goes to, while a rollout is under way; and what became of it. Pure."""

import hashlib
import time
from collections.abc import Callable
from types import TracebackType

from stagemesh.v1 import registry_pb2

from .demand import Demand
from .membership import Membership
from .trials import Trials, is_fault
from .validate import check_model

_SHARED = frozenset((registry_pb2.ROLLOUT_STATE_SHARING, registry_pb2.ROLLOUT_STATE_DRAINING))


class Revisions:
    """Chooses by the rollout's share; keeps count of what runs where. `now` is its clock, in seconds."""

    def __init__(
        self, membership: Membership, demand: Demand, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.trials = Trials(membership.models)
        self._membership = membership
        self._demand = demand
        self.now = clock

    def __repr__(self) -> str:
        return f"Revisions({self.trials!r})"

    def choose(
        self,
        name: str,
        request_id: str,
        made_for: Callable[[registry_pb2.ModelSpec], bool] | None = None,
    ) -> "Chosen":
        """The revision for a request: the same one for the same id, at any router, and once a candidate's, always.

        Args:
            name: of the model.
            request_id: of the request.
            made_for: whether the answer that the request goes on with is of this revision.

        Raises what `check_model` does.
        """
        return Chosen(self, self.spec(name, request_id, made_for))

    def spec(
        self,
        name: str,
        request_id: str,
        made_for: Callable[[registry_pb2.ModelSpec], bool] | None = None,
    ) -> registry_pb2.ModelSpec:
        """The spec that `choose` would take."""
        spec = check_model(name, self._membership.models)
        candidate = self._membership.candidates.get(name)
        if candidate is None:
            return spec
        if made_for is not None:
            return candidate if made_for(candidate) and not made_for(spec) else spec
        rollout = spec.rollout
        chosen, other = spec, candidate
        if drawn(request_id, rollout.started_unix_ms) < rollout.share:
            chosen, other = candidate, spec
        # One that was never shared, or that was judged, is no way out.
        spare = other is spec or rollout.state in _SHARED
        if spare and not self._membership.is_ready(chosen) and self._membership.is_ready(other):
            return other
        return chosen

    def left(self, chosen: "Chosen", error: BaseException | None) -> None:
        """It is over."""
        name, revision = chosen.spec.name, chosen.spec.revision
        self.trials.over(name, revision)
        failed = is_fault(error)
        if chosen.dispatched_at is None or chosen.cached or (error is not None and not failed):
            return
        now = self.now()
        took_ms = (now - chosen.dispatched_at) * 1e3
        pace_ms = None if chosen.tokens is None else took_ms / (1 + chosen.tokens)
        self.trials.ended(name, revision, failed=failed, pace_ms=pace_ms)
        first_ms = ((chosen.answered_at or now) - chosen.entered_at) * 1e3
        self._demand.ended(name, revision, latency_ms=None if failed else first_ms)


class Chosen:
    """`with` it around a request: `spec` is its revision's.

    Attributes:
        cached: the answer was kept from before, and says nothing of the revision.
        tokens: new ones, or 0 of a stateless request; None where its time says nothing.
    """

    __slots__ = ("_revisions", "answered_at", "cached", "dispatched_at", "entered_at", "spec", "tokens")

    def __init__(self, revisions: Revisions, spec: registry_pb2.ModelSpec) -> None:
        self.spec = spec
        self.cached = False
        self.tokens: int | None = 0
        self.entered_at = 0.0
        self.dispatched_at: float | None = None
        self.answered_at: float | None = None
        self._revisions = revisions

    def __enter__(self) -> "Chosen":
        self.entered_at = self._revisions.now()
        self._revisions.trials.began(self.spec.name, self.spec.revision)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._revisions.left(self, error)

    def dispatched(self) -> None:
        """It was admitted: what goes wrong from now on may be the revision's fault."""
        self.dispatched_at = self._revisions.now()

    def answered(self) -> None:
        """Something of the answer is there."""
        if self.answered_at is None:
            self.answered_at = self._revisions.now()


def drawn(request_id: str, rollout: int) -> float:
    """A number within 0..1 for a request; the same for each share of a rollout, so that shares only add requests."""
    digest = hashlib.blake2b(f"{rollout}\0{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
