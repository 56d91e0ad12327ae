"""Asks for the answer to another question that means the same, where the model's operator allows that.

After an exact miss: the question becomes a vector, the cache that knows the model's questions is asked for the nearest one, and
says whether its answer may be given. The answer itself is looked up by its key like any other, so that whatever ends it
(its time, an invalidation, another revision) ends it here as well. What goes wrong on the way is counted, and the
answer is computed.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc.aio
import numpy as np
import numpy.typing as npt
from opentelemetry import trace
from opentelemetry.trace import Span

from stagemesh.errors import StagemeshError
from stagemesh.metrics import histogram, tallies
from stagemesh.v1 import cache_pb2, registry_pb2
from stagemesh.v1 import semantic_pb2 as pb
from stagemesh.v1.semantic_pb2_grpc import SemanticServiceStub

from ..admission.priority import Priority
from ..channels import Channels
from ..context import RequestContext
from ..membership import Membership
from ..prepare import Plan
from .believe import answer_fault
from .choice import Pauses, rank_caches
from .client import HIT, CacheClient
from .flight import CacheUse
from .key import cache_tags
from .question import partition_with

log = logging.getLogger(__name__)
R = TypeVar("R")
KEEP_TIMEOUT_S = 2.0
MAX_KEEPS = 256
EMBED_S = 10.0
Vectors = npt.NDArray[np.float32]
Embed = Callable[[registry_pb2.ModelSpec, list[str], RequestContext, Span], Awaitable[tuple[Vectors, bool]]]


@dataclass(slots=True)
class Sought:
    """What came of a search: `value` is the answer to give, if any.

    `vector` is the question's, None when it has none; `found` is what the cache said, None when it did not.
    """

    encoder: registry_pb2.ModelSpec
    scope: pb.SemanticScope
    partition: bytes
    vector: bytes | None = None
    found: pb.SemanticFindResponse | None = None
    value: cache_pb2.CachedGeneration | None = None
    whole: bool = True


class SemanticClient:
    """`find` before an answer is computed, `keep` when it was. Neither raises, for anything but cancellation."""

    def __init__(
        self, membership: Membership, channels: Channels, cache: CacheClient, embed: Embed, *, timeout_ms: int
    ) -> None:
        self.embed = embed
        self._membership = membership
        self._channels = channels
        self._cache = cache
        self._timeout_s = timeout_ms / 1000
        self._pauses = Pauses()
        self._keeps: set[asyncio.Task[None]] = set()
        self._sought = tallies(
            "stagemesh_semantic_lookups_total",
            "Questions without an exact answer that were looked for by meaning, by model and result: hit, refused, "
            "gone (the answer had ended), no_encoder, too_long, timeout, failed, disbelieved.",
            ("model", "result"),
        )
        self._seconds = histogram(
            "stagemesh_semantic_lookup_seconds",
            "From an exact miss to what was found by meaning.",
            ("model",),
        )
        self._unkept = tallies(
            "stagemesh_semantic_unkept_total", "Questions that were not kept, by reason.", ("reason",)
        )

    def __repr__(self) -> str:
        return f"SemanticClient({len(self._keeps)} keeps, {self._pauses!r})"

    def _begin(self, plan: Plan) -> Sought | None:
        if plan.question is None:
            return None
        model = plan.spec.name
        encoder = self._membership.models.get(plan.spec.semantic.encoder)
        if encoder is None or encoder.task != "embed" or not self._membership.is_ready(encoder):
            self._sought.labels(model, "no_encoder").inc()
            return None
        named = f"{encoder.name}@{encoder.revision}"
        scope = pb.SemanticScope(model=model, revision=plan.spec.revision, encoder=named)
        return Sought(encoder, scope, partition_with(plan.question, named))

    async def find(self, plan: Plan, ctx: RequestContext, span: Span) -> Sought | None:
        """Look for the answer to another question; None when the plan has no question or there is no encoder."""
        sought = self._begin(plan)
        if sought is None:
            return None
        model = plan.spec.name
        started = time.monotonic()
        try:
            async with asyncio.timeout(min(self._timeout_s, max(ctx.deadline - started, 0.0))):
                result = await self._find(plan, ctx, span, sought)
        except TimeoutError:
            result = "timeout"
        except StagemeshError as error:
            log.warning("semantic.encoder_failed model=%s: %s", model, error)
            result = "failed"
        if result != "hit":
            sought.value = None
        self._sought.labels(model, result).inc()
        self._seconds.labels(model).observe(time.monotonic() - started)
        return sought

    async def _find(self, plan: Plan, ctx: RequestContext, span: Span, sought: Sought) -> str:
        assert plan.question is not None
        await self._embed(plan, ctx, span, sought)
        if sought.vector is None:
            return "too_long"
        request = pb.SemanticFindRequest(
            tenant=ctx.tenant,
            scope=sought.scope,
            settings=plan.spec.semantic,
            partition=sought.partition,
            vector=sought.vector,
            text=plan.question.text,
        )
        found: pb.SemanticFindResponse | None = await self.call(
            plan.spec.name, lambda stub: stub.Find(request, timeout=self._timeout_s)
        )
        if found is None:
            return "failed"
        if found.key and found.key != plan.key:
            sought.found = found
        if not found.serve or sought.found is None:
            return "refused"
        allowed = plan.spec.semantic.allowed_false_hit_rate or 1.0
        if not (
            len(found.key) == 32
            and 0 < found.similarity <= 1.001
            and 0 <= found.false_hit_bound <= allowed * 1.001
        ):
            log.warning("semantic.disbelieved model=%s", plan.spec.name)
            return "disbelieved"
        sought.value = await self.value(plan, ctx, found.key, span)
        return "hit" if sought.value is not None else "gone"

    async def _embed(self, plan: Plan, ctx: RequestContext, span: Span, sought: Sought) -> None:
        assert plan.question is not None
        vectors, sought.whole = await self.embed(sought.encoder, [plan.question.text], ctx, span)
        if sought.whole:  # else it would be found by how it begins
            sought.vector = vectors[0].astype("<f4").tobytes()

    async def value(
        self, plan: Plan, ctx: RequestContext, key: bytes, span: Span
    ) -> cache_pb2.CachedGeneration | None:
        """The kept answer under another question's key, if it may be one to this plan's."""
        partition = plan.question.partition if plan.question is not None else b""
        use = CacheUse(
            tenant=ctx.tenant,
            key=key,
            spec=plan.spec,
            kind=cache_pb2.CachedGeneration,
            fault=lambda value: answer_fault(
                value, partition=partition, max_tokens=plan.max_tokens, vocab_size=plan.spec.vocab_size
            ),
            deadline=ctx.deadline,
            # No lease: who does not find it computes the answer to its own question, not to that one.
            controls=replace(plan.controls, unstored=True),
        )
        asked = await self._cache.ask(use, span)
        return asked.value if asked.status == HIT else None

    def keep(self, plan: Plan, ctx: RequestContext, sought: Sought | None) -> None:
        """The answer to this question was stored: others may find it, from now on. Without `sought` it has no vector yet."""
        sought = self._begin(plan) if sought is None else sought
        if sought is None or not sought.whole or not plan.controls.store:
            return
        if len(self._keeps) >= MAX_KEEPS:
            self._unkept.labels("too many at once").inc()
            return
        background = ctx._replace(deadline=time.monotonic() + EMBED_S, priority=Priority.LOW)
        task = asyncio.create_task(self._keep(plan, background, sought), name="semantic-keep")
        self._keeps.add(task)
        task.add_done_callback(self._keeps.discard)

    async def _keep(self, plan: Plan, ctx: RequestContext, sought: Sought) -> None:
        assert plan.question is not None
        assert plan.key is not None
        try:
            if sought.vector is None:
                async with asyncio.timeout(EMBED_S):
                    await self._embed(plan, ctx, trace.INVALID_SPAN, sought)
        except (StagemeshError, TimeoutError) as error:
            log.debug("semantic.not_embedded: %s", error)
        if sought.vector is None:
            self._unkept.labels("no vector").inc()
            return
        request = pb.SemanticKeepRequest(
            tenant=ctx.tenant,
            scope=sought.scope,
            partition=sought.partition,
            key=plan.key,
            vector=sought.vector,
            text=plan.question.text,
            ttl_s=plan.controls.ttl_s or plan.spec.cache_ttl_s,
            tags=cache_tags(plan.spec, plan.controls.namespace, plan.controls.tags),
        )
        answer = await self.call(plan.spec.name, lambda stub: stub.Keep(request, timeout=KEEP_TIMEOUT_S))
        if answer is None:
            self._unkept.labels("failed").inc()
        elif not answer.kept:
            self._unkept.labels("refused").inc()
            log.debug("semantic.refused: %s", answer.reason)

    async def call(self, model: str, ask: Callable[[SemanticServiceStub], Awaitable[R]]) -> R | None:
        """Ask the cache that knows the model's questions; None when there is none or it does not answer."""
        # All that is known of a model lies at one cache, so that its evidence is one.
        ranked = rank_caches(
            [record.address for record in self._membership.services_of("cache")],
            hashlib.sha256(b"semantic" + model.encode()).digest(),
        )
        if not ranked or self._pauses.paused(ranked[0], time.monotonic()):
            # Another cache would know nothing: it must not begin to learn from a moment's traffic.
            return None
        try:
            return await ask(self._channels.semantic(ranked[0]))
        except grpc.aio.AioRpcError as error:
            log.warning("semantic.cache_failed: %s at %s", error.code().name, ranked[0])
            self._pauses.failed(ranked[0], time.monotonic())
            return None

    async def close(self) -> None:
        """Let the keeps under way end; each has a deadline."""
        await asyncio.gather(*self._keeps, return_exceptions=True)
