"""The router behind its doors: what gRPC and HTTP both call. Every error it raises is a `StagemeshError`."""

import logging
import random
import re
import time
from collections.abc import Mapping

from stagemesh.etcd import Etcd
from stagemesh.v1 import inference_pb2, registry_pb2

from .admission.gate import AdmissionGate
from .admission.priority import HEADER as PRIORITY_HEADER
from .admission.priority import asked_priority
from .admission.queue import Admission
from .at_once import AtOnce
from .auth import Auth, load_keys
from .cache.client import CacheClient
from .cache.near import NearCache
from .cache.semantic import SemanticClient
from .cache.usage import CacheUsageCounter
from .channels import Channels
from .config import RouterConfig
from .context import RequestContext, asked_timeout
from .dispatch import Dispatch
from .embedder import Embedder
from .generations import Generations
from .hand_over import HandOver
from .health.metrics import HealthMetrics
from .loads import Loads
from .means import Means
from .membership import Membership
from .membership_watch import MembershipWatch
from .prefix_watch import PrefixWatch
from .resume import ResumeTokens, load_resume_key
from .revisions import Revisions
from .routing import Routing
from .stateless import Stateless
from .status import mesh_status
from .telemetry import Telemetry
from .tenants import Tenants, load_tenants
from .text.tokenizers import ModelText, Texts
from .waking import Waking
from .warm import Warmer

__all__ = ["RequestContext", "RouterCore"]

log = logging.getLogger(__name__)
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
        self.channels = Channels(config.max_message_bytes, config.local_sockets)
        self.hand_over = HandOver()
        self._rng = random.Random() if rng is None else rng
        max_output_bytes = config.max_message_bytes - 2**16
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
        self._at_once = AtOnce(self._cache, self._gate, self.tenants)
        embedder = Embedder(self._dispatch, self.texts, self._rng, max_output_bytes=max_output_bytes)
        semantic = SemanticClient(
            self.membership,
            self.channels,
            self._cache,
            embedder.vectors,
            timeout_ms=config.semantic_timeout_ms,
        )
        means = Means(
            config,
            self.texts,
            self.telemetry,
            self.revisions,
            self.tenants,
            self._gate,
            self._cache,
            self._at_once,
            CacheUsageCounter(self.membership, self.channels),
            self._dispatch,
            self._rng,
            max_output_bytes,
        )
        self._generations = Generations(
            means,
            ResumeTokens(load_resume_key(config.resume_key) if config.resume_key else b""),
            semantic,
        )
        stateless = Stateless(means)
        self.generate = self._generations.generate
        self.infer, self.embed = stateless.infer, stateless.embed
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
        self._generations.semantics.usage.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watch.__aexit__()
        await self.waking.close()
        await self._prefixes.close()
        await self._generations.semantics.close()
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
            if request_id and _REQUEST_ID.fullmatch(request_id)
            else self._rng.randbytes(16).hex(),
            tenant=owner.tenant,
            deadline=time.monotonic() + (longest if timeout_s is None else min(max(timeout_s, 0.0), longest)),
            policy_override=metadata.get("x-stagemesh-policy", ""),
            priority=asked_priority(metadata.get(PRIORITY_HEADER, ""), owner.highest),
            metadata=metadata,
        )

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
