"""Stateless requests from their tensors or texts to the response, as the doors call them."""

from opentelemetry.trace import Span

from stagemesh import tracing
from stagemesh.errors import InvalidArgument, OutOfRange
from stagemesh.v1 import inference_pb2, registry_pb2

from .answer_first import AnswerFirst
from .cache.client import MISS
from .cache.controls import controls_of
from .cache.use import embed_use, infer_use
from .context import RequestContext
from .infer import Inference
from .means import Means
from .observe import Observed
from .prepare import tokenise_batch
from .validate import check_task, check_texts, check_token_ids
from .validate_tensors import Batch, check_infer, token_batch

MAX_TEXTS = 2048


class Stateless:
    """Inferences and embeddings of one router."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def infer(
        self, request: inference_pb2.InferRequest, ctx: RequestContext
    ) -> inference_pb2.InferResponse:
        """Named tensors [B, ...] in, named tensors [B, ...] out."""
        with AnswerFirst() as accounts:
            observed = accounts.enter(Observed(self._means.telemetry, "infer", request.model, ctx))
            if tracing.enabled():
                accounts.within(observed.current())
            chosen = accounts.enter(self._means.revisions.choose(request.model, ctx.request_id))
            spec = chosen.spec
            controls = controls_of(ctx.metadata, request)
            known, mark = self._means.at_once.batches, None
            if spec.cache and controls.lookup:
                mark, copied = self._means.at_once.copied(known, request, spec, ctx, controls, observed)
                if copied is not None:
                    self._count(spec, copied.cache, copied)
                    return copied
            batch = check_infer(request, spec, max_output_bytes=self._means.max_output_bytes)
            observed.bill(self._means.tenants.billed(ctx.tenant, spec.name))
            place = self._means.admitted(spec, ctx, len(batch.lengths))
            await place.enter()
            accounts.push(place.leave)
            chosen.dispatched()
            use = infer_use(request, batch, spec, ctx, controls)
            cache = self._means.cache
            asked = cache.bypassed() if use is None else await cache.ask(use)
            response = asked.value
            chosen.cached = response is not None
            self._count(spec, asked.status, response)
            if response is not None and use is not None:
                known.keep(mark, spec, (use, 0))
            if response is None:
                with asked:
                    response = inference_pb2.InferResponse(model=spec.name, revision=spec.revision)
                    route = await self._inference(batch, spec, ctx, observed.span).run(response)
                    place.done = len(batch.lengths)
                    observed.computed(sum(batch.lengths))
                    asked.store(response)
                response.route.extend(route)
        response.request_id = ctx.request_id
        response.cache = asked.status  # type: ignore[assignment]
        return response

    async def embed(
        self, request: inference_pb2.EmbedRequest, ctx: RequestContext
    ) -> inference_pb2.EmbedResponse:
        """Texts, or token ids, to vectors [N, H]."""
        with AnswerFirst() as accounts:
            observed = accounts.enter(Observed(self._means.telemetry, "embed", request.model, ctx))
            if tracing.enabled():
                accounts.within(observed.current())
            chosen = accounts.enter(self._means.revisions.choose(request.model, ctx.request_id))
            spec = chosen.spec
            check_task(spec, "embed")
            controls = controls_of(ctx.metadata, request)
            known, mark = self._means.at_once.texts, None
            if spec.cache and controls.lookup:
                mark, copied = self._means.at_once.copied(known, request, spec, ctx, controls, observed)
                if copied is not None:
                    self._count(spec, copied.cache, copied)
                    return copied
            _check_embed(request, spec)
            observed.bill(self._means.tenants.billed(ctx.tenant, spec.name))
            place = self._means.admitted(spec, ctx, len(request.texts or request.tokens))
            await place.enter()
            accounts.push(place.leave)
            chosen.dispatched()
            with self._means.telemetry.span("router.tokenize"):
                rows = await self._embed_rows(request, spec, ctx)
            tokens = sum(map(len, rows))
            observed.prompt(tokens)
            use = embed_use(rows, spec, ctx, controls)
            cache = self._means.cache
            asked = cache.bypassed() if use is None else await cache.ask(use)
            response = asked.value
            chosen.cached = response is not None
            self._count(spec, asked.status, response)
            if response is not None and use is not None:
                known.keep(mark, spec, (use, tokens))
            if response is None:
                with asked:
                    batch = token_batch({"input_ids": rows}, spec, "sentence_embedding")
                    made = inference_pb2.InferResponse()
                    route = await self._inference(batch, spec, ctx, observed.span).run(made)
                    place.done = len(rows)
                    observed.computed()
                    response = inference_pb2.EmbedResponse(embeddings=made.outputs[0])
                    response.usage.prompt_tokens = tokens
                    asked.store(response)
                response.route.extend(route)
        response.request_id = ctx.request_id
        response.cache = asked.status  # type: ignore[assignment]
        return response

    def _count(
        self,
        spec: registry_pb2.ModelSpec,
        status: int,
        kept: inference_pb2.InferResponse | inference_pb2.EmbedResponse | None,
    ) -> None:
        """What the caches said, for `stagemesh cache report`."""
        if kept is not None:
            self._means.usage.hit(spec.name, nbytes=kept.ByteSize())
        elif status == MISS:
            self._means.usage.miss(spec.name)

    def _inference(
        self, batch: Batch, spec: registry_pb2.ModelSpec, ctx: RequestContext, span: Span
    ) -> Inference:
        return Inference(
            batch,
            spec,
            ctx,
            span,
            self._means.dispatch,
            self._means.rng,
            max_output_bytes=self._means.max_output_bytes,
        )

    async def _embed_rows(
        self, request: inference_pb2.EmbedRequest, spec: registry_pb2.ModelSpec, ctx: RequestContext
    ) -> list[list[int]]:
        text = await self._means.text(spec, ctx)
        if request.texts:
            return await tokenise_batch(request.texts, text)
        longest = spec.context_length or text.max_embed_tokens
        for index, row in enumerate(request.tokens):
            if len(row.ids) > longest:
                field = f"tokens[{index}]"
                raise OutOfRange(
                    f"{field}: {len(row.ids)} tokens exceed the context of {longest}", field=field
                )
        return [list(row.ids) for row in request.tokens]


def _check_embed(request: inference_pb2.EmbedRequest, spec: registry_pb2.ModelSpec) -> None:
    if request.texts and request.tokens:
        raise InvalidArgument("tokens: give texts or tokens, not both", field="tokens")
    if not request.tokens:
        check_texts(request.texts, max_texts=MAX_TEXTS)
        return
    if len(request.tokens) > MAX_TEXTS:
        raise OutOfRange(f"tokens: more than {MAX_TEXTS} in one request", field="tokens")
    for index, row in enumerate(request.tokens):
        if not row.ids:
            raise InvalidArgument(f"tokens[{index}]: is empty", field=f"tokens[{index}]")
        check_token_ids(row.ids, spec, f"tokens[{index}]")
