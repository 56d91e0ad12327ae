"""Generations from the request to the last token, as the doors call them."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

from opentelemetry import trace

from stagemesh.errors import ResourceExhausted
from stagemesh.v1 import inference_pb2, registry_pb2

from .admission.priority import Priority
from .cache.client import HIT
from .cache.controls import CacheControls, controls_of
from .cache.semantic import SemanticClient
from .cache.semantic_verify import Verifier
from .cache.semantics import Semantics
from .choices import Choices, got_on
from .context import RequestContext
from .generate import Generation
from .means import Means
from .observe import Observed
from .prepare import Plan, prepare
from .resume import ResumeTokens
from .revisions import Chosen
from .validate import check_generate


class Generations:
    """Of one router; `semantics` is what answers by meaning, and has answers computed again here to verify them."""

    def __init__(self, means: Means, resume_tokens: ResumeTokens, semantic: SemanticClient) -> None:
        self._means = means
        self._resume_tokens = resume_tokens
        self.semantics = Semantics(semantic, Verifier(semantic, self._recompute), means.usage)

    async def generate(
        self, request: inference_pb2.GenerateRequest, ctx: RequestContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Validate, admit, tokenise, ask the cache, route, stream. Closing the iterator frees the session."""
        with (
            Observed(self._means.telemetry, "generate", request.model, ctx) as observed,
            self._revision_for(request, ctx) as chosen,
        ):
            spec = chosen.spec
            controls = controls_of(ctx.metadata, request)
            if not controls.replay:
                controls = replace(controls, replay=self._means.config.cache_replay)
            mark, known = self._means.at_once.plan(request, spec, ctx, controls, observed)
            if known is not None:
                observed.prompt(len(known.token_ids))
                again = self._generation(known, ctx, observed)
                with _accounted([again], observed, chosen):
                    async with aclosing(again.run()) as responses:
                        async for response in responses:
                            yield response
                return
            check_generate(request, spec)
            size = request.max_tokens if request.HasField("max_tokens") else self._means.config.max_tokens
            begun = request.HasField("resume")
            if begun:  # it is brought to its end before others begin
                ctx = ctx._replace(priority=Priority.HIGH)
            answers = max(request.n, 1) if request.HasField("n") else 1
            observed.bill(self._means.tenants.billed(ctx.tenant, spec.name, size * answers, begun=begun))
            async with self._means.admitted(spec, ctx, size, begun=begun) as place:
                self._means.telemetry.began(ctx.priority, place.waited_s)
                chosen.dispatched()
                with observed.current():
                    plans = await self._prepare(request, spec, ctx, controls)
                observed.prompt(len(plans[0].token_ids))
                generations = [self._generation(plan, ctx, observed) for plan in plans]
                if len(generations) == 1:
                    with _accounted(generations, observed, chosen):
                        async with aclosing(generations[0].run()) as responses:
                            async for response in responses:
                                chosen.answered()
                                got_on(place, generations[0], response)
                                yield response
                    if generations[0].cache_status == HIT:
                        self._means.at_once.answered(mark, plans[0])
            if len(generations) > 1:  # each answer is admitted by itself
                choices = Choices(generations, lambda: self._means.admitted(spec, ctx, size, begun=begun))
                with _accounted(generations, observed, chosen):
                    async with aclosing(choices.run()) as responses:
                        async for response in responses:
                            chosen.answered()
                            yield response

    def _revision_for(self, request: inference_pb2.GenerateRequest, ctx: RequestContext) -> Chosen:
        """What goes on goes on with its own revision."""
        if not request.HasField("resume"):
            return self._means.revisions.choose(request.model, ctx.request_id)
        token = request.resume.token
        return self._means.revisions.choose(
            request.model, ctx.request_id, lambda spec: self._resume_tokens.made_for(token, spec)
        )

    async def _prepare(
        self,
        request: inference_pb2.GenerateRequest,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        controls: CacheControls,
    ) -> list[Plan]:
        with self._means.telemetry.span("router.tokenize"):
            text = await self._means.text(spec, ctx)
            return await prepare(
                request,
                spec,
                text,
                ctx.tenant,
                self._means.rng,
                default_max_tokens=self._means.config.max_tokens,
                resume_tokens=self._resume_tokens,
                controls=controls,
            )

    def _generation(self, plan: Plan, ctx: RequestContext, observed: Observed) -> Generation:
        return Generation(
            plan,
            ctx,
            observed.span,
            self._means.rng.getrandbits(63) | 1,
            started=observed.started,
            cache=self._means.cache,
            dispatch=self._means.dispatch,
            telemetry=self._means.telemetry,
            semantics=self.semantics,
        )

    async def _recompute(
        self, plan: Plan, ctx: RequestContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """A plan's own answer, whatever is kept, among the running requests when nobody else waits; it is stored."""
        if self._means.gate.admission.waiting:
            raise ResourceExhausted("others wait")
        own = replace(plan, controls=replace(plan.controls, no_cache=True), resume_token=b"")
        async with self._means.admitted(plan.spec, ctx, plan.max_tokens) as place:
            generation = Generation(
                own,
                ctx,
                trace.INVALID_SPAN,
                self._means.rng.getrandbits(63) | 1,
                started=time.monotonic(),
                cache=self._means.cache,
                dispatch=self._means.dispatch,
                telemetry=self._means.telemetry,
                semantics=self.semantics,
            )
            async with aclosing(generation.run()) as responses:
                async for response in responses:
                    got_on(place, generation, response)
                    yield response


@contextmanager
def _accounted(generations: list[Generation], observed: Observed, chosen: Chosen) -> Iterator[None]:
    """Count what was generated when the body is over, well or not."""
    try:
        yield
    finally:
        tokens = sum(generation.completion_tokens for generation in generations)
        observed.completion(tokens, generations[0].finish_reason)
        made = [each.completion_tokens for each in generations if each.cache_status != HIT]
        if any(made):
            observed.computed(sum(made))
        # Several answers run partly beside and partly after one another: how long they took says nothing.
        chosen.tokens = tokens if len(generations) == 1 else None
        chosen.cached = all(each.cached for each in generations)
