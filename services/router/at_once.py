"""Answers that need nobody: the request is known by its bytes, and the router holds a copy of its answer.

Such a request is neither checked nor tokenised again, and takes nobody's place among the running ones; who asks, what
the answer may be given for, and how many requests its tenant may send, is looked at as for any other.
"""

from typing import Any, TypeVar

from google.protobuf.message import Message

from stagemesh.v1 import inference_pb2, registry_pb2

from .admission.gate import AdmissionGate
from .cache.client import HIT, CacheClient
from .cache.controls import CacheControls
from .cache.flight import CacheUse
from .cache.prepared import Mark, Prepared
from .context import RequestContext
from .observe import Observed
from .prepare import Plan
from .tenants import Tenants

M = TypeVar("M", bound=Message)
TOKEN_BYTES = 36
"""What a token id takes in a list."""


class AtOnce:
    """Requests that were answered from the cache before, by what they came to."""

    def __init__(self, cache: CacheClient, gate: AdmissionGate, tenants: Tenants) -> None:
        self._cache = cache
        self._gate = gate
        self._tenants = tenants
        self.plans: Prepared[Plan] = Prepared()
        self.batches: Prepared[tuple[CacheUse[inference_pb2.InferResponse], int]] = Prepared()
        self.texts: Prepared[tuple[CacheUse[inference_pb2.EmbedResponse], int]] = Prepared()

    def __repr__(self) -> str:
        return f"AtOnce({self.plans!r}, {self.batches!r}, {self.texts!r})"

    def plan(
        self,
        request: inference_pb2.GenerateRequest,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        controls: CacheControls,
        observed: Observed,
    ) -> tuple[Mark | None, Plan | None]:
        """What to remember the request by, and its plan if there is a copy of the answer.

        Raises:
            Unavailable: the router is draining.
            QuotaExceeded: the tenant sent too many requests.
        """
        mark = self.plans.mark(request, spec, ctx.tenant, controls)
        plan = self.plans.find(mark, spec)
        if plan is None or not self._cache.has_copy(ctx.tenant, plan.key, controls.max_age_s):
            return mark, None
        self._let_in(spec, ctx, observed)
        return mark, plan

    def answered(self, mark: Mark | None, plan: Plan) -> None:
        """A kept answer was given for it."""
        self.plans.keep(mark, plan.spec, plan, TOKEN_BYTES * len(plan.token_ids))

    def copied(
        self,
        known: Prepared[tuple[CacheUse[M], int]],
        request: Message,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        controls: CacheControls,
        observed: Observed,
    ) -> tuple[Mark | None, M | None]:
        """What to remember the request by, and its answer if there is a copy of it; raises what `plan` does."""
        mark = known.mark(request, spec, ctx.tenant, controls)
        use, tokens = known.find(mark, spec) or (None, 0)
        if use is None or not self._cache.has_copy(ctx.tenant, use.key, controls.max_age_s):
            return mark, None
        self._let_in(spec, ctx, observed)
        answer: Any = self._cache.copied(use)
        if answer is None:
            return mark, None  # its time was over in this very moment
        if tokens:
            observed.prompt(tokens)
        answer.request_id, answer.cache = ctx.request_id, HIT
        return mark, answer

    def _let_in(self, spec: registry_pb2.ModelSpec, ctx: RequestContext, observed: Observed) -> None:
        """As any other request, but for its tokens: none are made for it."""
        self._gate.check_open()
        observed.bill(self._tenants.billed(ctx.tenant, spec.name))
