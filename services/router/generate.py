"""The story of one generation, from an admitted request to the last chunk."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import Span

from stagemesh.v1 import cache_pb2, inference_pb2, semantic_pb2, stage_pb2

from .cache.believe import generation_fault, in_one_chunk
from .cache.client import BYPASS, MISS, SEMANTIC, CacheClient
from .cache.flight import CacheUse
from .cache.semantics import Semantics
from .context import RequestContext
from .dispatch import Dispatch, Route, deadline_unix_ms
from .prepare import Plan
from .telemetry import Telemetry

UNSPECIFIED = inference_pb2.CACHE_STATUS_UNSPECIFIED
FINISH = {stage_pb2.FINISH_REASON_STOP: "stop", stage_pb2.FINISH_REASON_LENGTH: "length"}


class Generation:
    """One generation: cache, route, tokens to text, stop strings, cache again.

    `completion_tokens` are those generated here; what an answer had before its stream broke is in its usage only.
    """

    def __init__(
        self,
        plan: Plan,
        ctx: RequestContext,
        span: Span,
        session: int,
        *,
        started: float,
        cache: CacheClient,
        dispatch: Dispatch,
        telemetry: Telemetry,
        semantics: Semantics,
    ) -> None:
        self.plan = plan
        self.completion_tokens = 0
        self.finish_reason = ""
        # Of an answer that goes on, the first chunk before the break said it.
        self.cache_status: int = BYPASS if plan.so_far is None else UNSPECIFIED
        self._ctx = ctx
        self._span = span
        self._session = session
        self._cache = cache
        self._dispatch = dispatch
        self._telemetry = telemetry
        self._semantics = semantics
        # Nothing of it was computed for this request.
        self.cached = False
        self._first = True
        self._started = started

    async def run(self) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """The whole answer; the first chunk carries id, cache status and route, the last one the rest."""
        plan = self.plan
        asked = await self._cache.ask(self._cache_use(), self._span)
        if plan.so_far is None:
            self.cache_status = asked.status
        if asked.value is not None:
            self._semantics.usage.hit(plan.spec.name, asked.value)
            for response in self._replay(asked.value):
                yield response
            return
        store = plan.key is not None and plan.controls.store
        chunks: list[cache_pb2.CachedChunk] = []
        sought = None
        with asked:
            if plan.question is not None and asked.status == MISS and not plan.controls.no_semantic:
                sought = await self._semantics.client.find(plan, self._ctx, self._span)
            if sought is not None and sought.value is not None and sought.found is not None:
                asked.dissolve()  # whoever waits for this answer finds that one by itself
                try:
                    for response in self._replay_alike(sought.value, sought.found):
                        yield response
                finally:
                    self._semantics.served(plan, self._ctx, sought, sought.value)
                return
            if asked.status == MISS:
                self._semantics.usage.miss(plan.spec.name)
            begun = time.monotonic()
            async with aclosing(self._stream()) as responses:
                async for response in responses:
                    if store:
                        ids = [token.id for token in response.tokens]
                        chunks.append(cache_pb2.CachedChunk(text=response.text, token_ids=ids))
                    if response.finish_reason and store:
                        value = cache_pb2.CachedGeneration(
                            chunks=chunks,
                            finish_reason=response.finish_reason,
                            prompt_tokens=len(plan.token_ids),
                            compute_ms=int((time.monotonic() - begun) * 1000),
                            partition=plan.question.partition if plan.question is not None else b"",
                        )
                        with trace.use_span(self._span):
                            asked.store(value)
                        if plan.question is not None:
                            self._semantics.computed(plan, self._ctx, sought, value)
                    yield response

    async def _stream(self) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Tokens from the mesh as chunks of final text; ends early when a stop string completes."""
        plan = self.plan
        answer = plan.answer_text()
        if plan.so_far is not None:
            self._telemetry.resumed.labels(plan.spec.name).inc()
            field = f"resume.answers[{plan.index}]"
            text, finish = answer.resume(plan.so_far.token_ids, plan.so_far.characters, field)
            if finish:
                yield self._chunk(text, [], finish, [], [])
                return
        async with aclosing(
            self._dispatch.generate(
                plan.spec, self._ctx, self._span, self._opening, plan.token_ids, plan.max_tokens
            )
        ) as events:
            async for route, event in events:
                text, finish = answer.push(
                    [token.id for token in event.tokens], FINISH.get(event.finish_reason, "")
                )
                if plan.sampling.logprobs > plan.alternatives:
                    for token in event.tokens:
                        token.ClearField("alternatives")
                yield self._chunk(text, list(event.tokens), finish, route, list(event.timings))
                if finish:
                    return

    def _chunk(
        self,
        text: str,
        tokens: list[stage_pb2.Token],
        finish: str,
        route: Route,
        timings: list[stage_pb2.StageTiming],
    ) -> inference_pb2.GenerateResponse:
        self.completion_tokens += len(tokens)
        self.finish_reason = finish
        response = inference_pb2.GenerateResponse(
            text=text, tokens=tokens, finish_reason=finish, timings=timings, index=self.plan.index
        )
        if self._first:
            self._first = False
            response.request_id = self._ctx.request_id
            response.resume_token = self.plan.resume_token
            response.cache = self.cache_status  # type: ignore[assignment]
            response.route.extend(route)
            if self.plan.so_far is None:
                self._telemetry.first_token.labels(self.plan.spec.name).observe(
                    time.monotonic() - self._started
                )
        if finish:
            response.usage.prompt_tokens = len(self.plan.token_ids)
            response.usage.completion_tokens = len(self._before()) + self.completion_tokens
        return response

    def _replay_alike(
        self, kept: cache_pb2.CachedGeneration, found: semantic_pb2.SemanticFindResponse
    ) -> list[inference_pb2.GenerateResponse]:
        """Another question's answer, which says so."""
        self.cache_status = SEMANTIC
        responses = self._replay(kept)
        responses[0].semantic.similarity = min(found.similarity, 1.0)
        responses[0].semantic.false_hit_bound = found.false_hit_bound
        # It is not this prompt's: nobody could go on with it.
        responses[0].ClearField("resume_token")
        return responses

    def _replay(self, kept: cache_pb2.CachedGeneration) -> list[inference_pb2.GenerateResponse]:
        self.cached = True
        position = len(self.plan.token_ids)
        if self.plan.controls.replay == "whole":
            kept = in_one_chunk(kept)
        responses = []
        for index, chunk in enumerate(kept.chunks):
            tokens = [
                stage_pb2.Token(id=token, position=position + offset)
                for offset, token in enumerate(chunk.token_ids)
            ]
            position += len(tokens)
            finish = kept.finish_reason if index == len(kept.chunks) - 1 else ""
            responses.append(self._chunk(chunk.text, tokens, finish, [], []))
        responses = responses or [self._chunk("", [], kept.finish_reason, [], [])]
        if self.plan.drawn:  # it has another seed than the token says: nobody could go on with it
            responses[0].ClearField("resume_token")
        return responses

    def _cache_use(self) -> CacheUse[cache_pb2.CachedGeneration]:
        plan = self.plan
        return CacheUse(
            tenant=self._ctx.tenant,
            key=plan.key,
            spec=plan.spec,
            kind=cache_pb2.CachedGeneration,
            fault=partial(
                generation_fault,
                prompt_tokens=len(plan.token_ids),
                max_tokens=plan.max_tokens,
                vocab_size=plan.spec.vocab_size,
            ),
            deadline=self._ctx.deadline,
            controls=plan.controls,
        )

    def _before(self) -> Sequence[int]:
        """Tokens from before a break."""
        return self.plan.so_far.token_ids if self.plan.so_far is not None else ()

    def _opening(self, route: Route, tokens: list[int], epoch: int) -> stage_pb2.OpenSession:
        """The session for a route, which has these tokens already, after those from before a break."""
        plan, before = self.plan, self._before()
        return stage_pb2.OpenSession(
            session=self._session,
            epoch=epoch,
            model=plan.spec.name,
            revision=plan.spec.revision,
            route=route,
            token_ids=[*plan.token_ids, *before, *tokens] if before or tokens else plan.token_ids,
            prompt_tokens=len(plan.token_ids),
            max_tokens=plan.max_tokens,
            sampling=plan.sampling,
            stop_token_ids=plan.stop_token_ids,
            deadline_unix_ms=deadline_unix_ms(self._ctx),
        )
