"""The router behind its doors: what gRPC and HTTP both call. Every error it raises is a `StagemeshError`."""

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.trace import Span

from stagemesh.errors import DeadlineExceeded, InvalidArgument, OutOfRange, ResourceExhausted
from stagemesh.etcd import Etcd
from stagemesh.v1 import inference_pb2, registry_pb2

from .admission.gate import AdmissionGate, Place
from .admission.priority import HEADER as PRIORITY_HEADER
from .admission.priority import Priority, asked_priority
from .admission.queue import Admission
from .at_once import AtOnce
from .auth import Auth, load_keys
from .cache.client import HIT, CacheClient
from .cache.controls import CacheControls, controls_of
from .cache.near import NearCache
from .cache.semantic import SemanticClient
from .cache.semantic_verify import Verifier
from .cache.semantics import Semantics
from .cache.usage import CacheUsageCounter
from .cache.use import embed_use, infer_use
from .channels import Channels
from .choices import Choices, got_on
from .config import RouterConfig
from .context import RequestContext, asked_timeout
from .dispatch import Dispatch
from .embedder import Embedder
from .generate import Generation
from .hand_over import HandOver
from .health.metrics import HealthMetrics
from .infer import Inference
from .loads import Loads
from .membership import Membership
from .membership_watch import MembershipWatch
from .observe import Observed
from .prefix_watch import PrefixWatch
from .prepare import Plan, prepare, tokenise_batch
from .resume import ResumeTokens, load_resume_key
from .revisions import Chosen, Revisions
from .routing import Routing
from .status import mesh_status
from .telemetry import Telemetry
from .tenants import Tenants, load_tenants
from .text.tokenizers import ModelText, Texts
from .validate import check_generate, check_task, check_texts, check_token_ids
from .validate_tensors import Batch, check_infer, token_batch
from .waking import Waking
from .warm import Warmer

__all__ = ["RequestContext", "RouterCore"]

log = logging.getLogger(__name__)
MAX_TEXTS = 2048
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RouterCore:
    """Membership, admission, routes and cache of one router process. `async with` starts and stops its tasks."""

    def __init__(
        self,
        config: RouterConfig,
        etcd: Etcd,
        *,
        texts: Texts | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.etcd = etcd
        self.texts = Texts() if texts is None else texts
        self.telemetry = Telemetry()
        self.auth = Auth(load_keys(config.api_keys) if config.api_keys else None)
        self.membership = Membership(grace_s=config.lease_ttl_s)
        self.revisions = Revisions(self.membership, self.telemetry.demand)
        self.tenants = Tenants(load_tenants(config.api_keys) if config.api_keys else {}, self.membership)
        self.loads = Loads()
        self.channels = Channels(config.max_message_bytes)
        self.hand_over = HandOver()
        self._resume_tokens = ResumeTokens(load_resume_key(config.resume_key) if config.resume_key else b"")
        self._rng = random.Random() if rng is None else rng
        self._max_output_bytes = config.max_message_bytes - 2**16
        self._gate = AdmissionGate(
            Admission(
                max_active=config.max_sessions,
                max_waiting=config.max_waiting,
                max_wait_s=config.max_wait_s,
            ),
            self.telemetry.refused,
        )
        self.loads.health.notice = HealthMetrics()
        routing = Routing(self.membership, self.loads, default_policy=config.policy, zone=config.zone)
        self._prefixes = PrefixWatch(self.membership, routing, self.loads, self.channels, self.telemetry)
        self.waking = Waking(
            self.membership,
            self.channels,
            self.telemetry,
            max_held=config.max_held,
            # While it slept nothing was done, which says nothing of what it gets done.
            on_awake=lambda model: self._gate.admission.lane(model).throughput.woke(time.monotonic()),
        )
        self._dispatch = Dispatch(routing, self.loads, self.channels, self.telemetry, self._rng, self.waking)
        near = NearCache(config.cache_near_bytes, time.monotonic, lambda: etcd.connected)
        self._cache = CacheClient(
            self.membership,
            self.channels,
            self.telemetry,
            timeout_ms=config.cache_timeout_ms,
            wait_s=config.cache_wait_s,
            near=near,
        )
        self._at_once = AtOnce(self._cache, self._gate)
        embedder = Embedder(self._dispatch, self.texts, self._rng, max_output_bytes=self._max_output_bytes)
        semantic = SemanticClient(
            self.membership,
            self.channels,
            self._cache,
            embedder.vectors,
            timeout_ms=config.semantic_timeout_ms,
        )
        self._semantics = Semantics(
            semantic,
            Verifier(semantic, self._recompute),
            CacheUsageCounter(self.membership, self.channels),
        )
        self._watch = MembershipWatch(
            etcd, self.membership, self.loads, self.channels, Warmer(self.texts), self._changed, near
        )
        admission = self._gate.admission
        self.telemetry.active.set_function(lambda: admission.active)
        self.telemetry.waiting.set_function(lambda: admission.waiting)
        self.telemetry.watch_queue(admission)
        self.telemetry.demand.known = self.membership.models
        self.telemetry.demand.waiting = lambda model: admission.lane(model).waiting
        self.telemetry.demand.held = self.waking.held_of
        self.telemetry.demand.complete = self.revisions.trials.add_to
        self.telemetry.etcd_connected.set_function(lambda: float(etcd.connected))

    def __repr__(self) -> str:
        return f"RouterCore({self._gate.admission!r}, {self.membership!r})"

    async def __aenter__(self) -> "RouterCore":
        await self._watch.__aenter__()
        await self._watch.listed()
        self._semantics.usage.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watch.__aexit__()
        await self.waking.close()
        await self._prefixes.close()
        await self._semantics.close()
        await self._cache.close()
        await self.channels.close()
        await self.texts.close()

    def _changed(self) -> None:
        """The mesh may be another one."""
        self.waking.changed()
        self._prefixes.update()

    def context(self, metadata: Mapping[str, str], timeout_s: float | None = None) -> RequestContext:
        """Who asks: `metadata` are gRPC metadata or HTTP headers, names in lower case.

        Without `timeout_s` the caller's header counts; what is beyond the server's own deadline is cut to it. Raises
        `Unauthenticated`, `PermissionDenied`, and `InvalidArgument` that names the header.
        """
        longest = self.config.deadline_s
        owner = self.auth.credential(metadata.get("authorization", ""))
        timeout_s = asked_timeout(metadata) if timeout_s is None else timeout_s
        request_id = metadata.get("x-request-id", "")
        return RequestContext(
            request_id=request_id
            if _REQUEST_ID.fullmatch(request_id)
            else f"{self._rng.getrandbits(128):032x}",
            tenant=owner.tenant,
            deadline=time.monotonic() + (longest if timeout_s is None else min(max(timeout_s, 0.0), longest)),
            policy_override=metadata.get("x-stagemesh-policy", ""),
            priority=asked_priority(metadata.get(PRIORITY_HEADER, ""), owner.highest),
            metadata=metadata,
        )

    async def generate(
        self, request: inference_pb2.GenerateRequest, ctx: RequestContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Validate, admit, tokenise, ask the cache, route, stream. Closing the iterator frees the session."""
        with (
            Observed(self.telemetry, "generate", request.model, ctx) as observed,
            self._revision_for(request, ctx) as chosen,
        ):
            spec = chosen.spec
            controls = controls_of(ctx.metadata, request)
            if not controls.replay:
                controls = replace(controls, replay=self.config.cache_replay)
            mark, known = self._at_once.plan(request, spec, ctx, controls)
            if known is not None:
                observed.prompt(len(known.token_ids))
                again = self._generation(known, ctx, observed)
                with _accounted([again], observed, chosen):
                    async with aclosing(again.run()) as responses:
                        async for response in responses:
                            yield response
                return
            check_generate(request, spec)
            size = request.max_tokens if request.HasField("max_tokens") else self.config.max_tokens
            begun = request.HasField("resume")
            if begun:  # it is brought to its end before others begin
                ctx = replace(ctx, priority=Priority.HIGH)
            answers = max(request.n, 1) if request.HasField("n") else 1
            observed.bill(self.tenants.billed(ctx.tenant, spec.name, size * answers, begun=begun))
            async with self._admitted(spec, ctx, size, begun=begun) as place:
                self.telemetry.began(ctx.priority, place.waited_s)
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
                        self._at_once.answered(mark, plans[0])
            if len(generations) > 1:  # each answer is admitted by itself
                choices = Choices(generations, lambda: self._admitted(spec, ctx, size, begun=begun))
                with _accounted(generations, observed, chosen):
                    async with aclosing(choices.run()) as responses:
                        async for response in responses:
                            chosen.answered()
                            yield response

    def _revision_for(self, request: inference_pb2.GenerateRequest, ctx: RequestContext) -> Chosen:
        """What goes on goes on with its own revision."""
        if not request.HasField("resume"):
            return self.revisions.choose(request.model, ctx.request_id)
        token = request.resume.token
        return self.revisions.choose(
            request.model, ctx.request_id, lambda spec: self._resume_tokens.made_for(token, spec)
        )

    def _admitted(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, size: int, *, begun: bool = False
    ) -> Place:
        """A place among the running requests, for `size` tokens or rows at most."""
        return self._gate.admitted(
            ctx.deadline,
            model=spec.name,
            priority=ctx.priority,
            size=size,
            begun=begun,
            tenant=ctx.tenant,
            weight=self.tenants.weight(ctx.tenant),
            model_weight=spec.weight or 1.0,
        )

    def _generation(self, plan: Plan, ctx: RequestContext, observed: Observed) -> Generation:
        return Generation(
            plan,
            ctx,
            observed.span,
            self._rng.getrandbits(63) | 1,
            started=observed.started,
            cache=self._cache,
            dispatch=self._dispatch,
            telemetry=self.telemetry,
            semantics=self._semantics,
        )

    async def _recompute(
        self, plan: Plan, ctx: RequestContext
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """A plan's own answer, whatever is kept, among the running requests when nobody else waits; it is stored."""
        if self._gate.admission.waiting:
            raise ResourceExhausted("others wait")
        own = replace(plan, controls=replace(plan.controls, no_cache=True), resume_token=b"")
        async with self._admitted(plan.spec, ctx, plan.max_tokens) as place:
            generation = Generation(
                own,
                ctx,
                trace.INVALID_SPAN,
                self._rng.getrandbits(63) | 1,
                started=time.monotonic(),
                cache=self._cache,
                dispatch=self._dispatch,
                telemetry=self.telemetry,
                semantics=self._semantics,
            )
            async with aclosing(generation.run()) as responses:
                async for response in responses:
                    got_on(place, generation, response)
                    yield response

    async def infer(
        self, request: inference_pb2.InferRequest, ctx: RequestContext
    ) -> inference_pb2.InferResponse:
        """Named tensors [B, ...] in, named tensors [B, ...] out."""
        with (
            Observed(self.telemetry, "infer", request.model, ctx) as observed,
            observed.current(),
            self.revisions.choose(request.model, ctx.request_id) as chosen,
        ):
            spec = chosen.spec
            controls = controls_of(ctx.metadata, request)
            known = self._at_once.batches
            mark, copied = self._at_once.copied(known, request, spec, ctx, controls, observed)
            if copied is not None:
                return copied
            batch = check_infer(request, spec, max_output_bytes=self._max_output_bytes)
            observed.bill(self.tenants.billed(ctx.tenant, spec.name))
            async with self._admitted(spec, ctx, len(batch.lengths)) as place:
                chosen.dispatched()
                use = infer_use(request, batch, spec, ctx, controls)
                asked = await self._cache.ask(use)
                response = asked.value
                chosen.cached = response is not None
                if response is not None:
                    known.keep(mark, spec, (use, 0))
                if response is None:
                    with asked:
                        outputs, route = await self._inference(batch, spec, ctx, observed.span).run()
                        place.progress(len(batch.lengths))
                        observed.computed(sum(batch.lengths))
                        response = inference_pb2.InferResponse(
                            model=spec.name, revision=spec.revision, outputs=outputs
                        )
                        asked.store(response)
                    response.route.extend(route)
        response.request_id = ctx.request_id
        response.cache = asked.status  # type: ignore[assignment]
        return response

    async def embed(
        self, request: inference_pb2.EmbedRequest, ctx: RequestContext
    ) -> inference_pb2.EmbedResponse:
        """Texts, or token ids, to vectors [N, H]."""
        with (
            Observed(self.telemetry, "embed", request.model, ctx) as observed,
            observed.current(),
            self.revisions.choose(request.model, ctx.request_id) as chosen,
        ):
            spec = chosen.spec
            check_task(spec, "embed")
            controls = controls_of(ctx.metadata, request)
            known = self._at_once.texts
            mark, copied = self._at_once.copied(known, request, spec, ctx, controls, observed)
            if copied is not None:
                return copied
            _check_embed(request, spec)
            observed.bill(self.tenants.billed(ctx.tenant, spec.name))
            async with self._admitted(spec, ctx, len(request.texts or request.tokens)) as place:
                chosen.dispatched()
                with self.telemetry.span("router.tokenize"):
                    rows = await self._embed_rows(request, spec, ctx)
                tokens = sum(map(len, rows))
                observed.prompt(tokens)
                use = embed_use(rows, spec, ctx, controls)
                asked = await self._cache.ask(use)
                response = asked.value
                chosen.cached = response is not None
                if response is not None:
                    known.keep(mark, spec, (use, tokens))
                if response is None:
                    with asked:
                        batch = token_batch({"input_ids": rows}, spec, "sentence_embedding")
                        outputs, route = await self._inference(batch, spec, ctx, observed.span).run()
                        place.progress(len(rows))
                        observed.computed()
                        response = inference_pb2.EmbedResponse(embeddings=outputs[0])
                        response.usage.prompt_tokens = tokens
                        asked.store(response)
                    response.route.extend(route)
        response.request_id = ctx.request_id
        response.cache = asked.status  # type: ignore[assignment]
        return response

    def models(self) -> list[inference_pb2.ModelInfo]:
        """Every deployed model, by name, and whether each of its stages has a ready replica, or it sleeps."""
        return [
            inference_pb2.ModelInfo(
                spec=spec,
                ready=self.membership.is_ready(spec),
                asleep=self.membership.asleep(spec),
                scale=self.membership.scales.get(spec.name) if spec.HasField("scaling") else None,
            )
            for _, spec in sorted(self.membership.models.items())
        ]

    async def status(self) -> inference_pb2.MeshStatus:
        """The router's view, with the load that each replica reports when asked now."""
        return await mesh_status(
            self.membership, self.loads, self.channels, self.models(), self.etcd.connected
        )

    async def text(self, model: str, ctx: RequestContext) -> ModelText:
        """The tokenizer of a model, of the revision that the request goes to; raises `NotFound` for an unknown one."""
        return await self.texts.get(self.spec(model, ctx))

    def spec(self, model: str, ctx: RequestContext) -> registry_pb2.ModelSpec:
        """The revision of a model that the request goes to; raises `NotFound` for an unknown one."""
        return self.revisions.spec(model, ctx.request_id)

    @property
    def draining(self) -> bool:
        """Whether the router is shutting down."""
        return self._gate.closed

    def record_http(self, path: str, status: int, seconds: float) -> None:
        """Count an answered HTTP request; `path` is one of a few."""
        self.telemetry.http_requests.labels(path, str(status)).inc()
        self.telemetry.http_duration.labels(path).observe(seconds)

    async def drained(self) -> None:
        """Admit nobody new; return when nothing runs or waits."""
        await self._gate.drained()

    async def _prepare(
        self,
        request: inference_pb2.GenerateRequest,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        controls: CacheControls,
    ) -> list[Plan]:
        with self.telemetry.span("router.tokenize"):
            text = await self._text(spec, ctx)
            return await prepare(
                request,
                spec,
                text,
                ctx.tenant,
                self._rng,
                default_max_tokens=self.config.max_tokens,
                resume_tokens=self._resume_tokens,
                controls=controls,
            )

    def _inference(
        self, batch: Batch, spec: registry_pb2.ModelSpec, ctx: RequestContext, span: Span
    ) -> Inference:
        return Inference(
            batch, spec, ctx, span, self._dispatch, self._rng, max_output_bytes=self._max_output_bytes
        )

    async def _text(self, spec: registry_pb2.ModelSpec, ctx: RequestContext) -> ModelText:
        try:
            async with asyncio.timeout(max(ctx.deadline - time.monotonic(), 0)):
                return await self.texts.get(spec)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the model's tokenizer was being loaded"
            ) from None

    async def _embed_rows(
        self, request: inference_pb2.EmbedRequest, spec: registry_pb2.ModelSpec, ctx: RequestContext
    ) -> list[list[int]]:
        text = await self._text(spec, ctx)
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
