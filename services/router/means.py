"""What every kind of request needs of the router: its place among others, and the text side of its model."""

import asyncio
import random
import time
from dataclasses import dataclass

from stagemesh.errors import DeadlineExceeded
from stagemesh.v1 import registry_pb2

from .admission.gate import AdmissionGate, Place
from .at_once import AtOnce
from .cache.client import CacheClient
from .cache.usage import CacheUsageCounter
from .config import RouterConfig
from .context import RequestContext
from .dispatch import Dispatch
from .revisions import Revisions
from .telemetry import Telemetry
from .tenants import Tenants
from .text.tokenizers import ModelText, Texts


@dataclass(frozen=True)
class Means:
    """The parts of one router that requests go through; `max_output_bytes` is what a response may hold."""

    config: RouterConfig
    texts: Texts
    telemetry: Telemetry
    revisions: Revisions
    tenants: Tenants
    gate: AdmissionGate
    cache: CacheClient
    at_once: AtOnce
    usage: CacheUsageCounter
    dispatch: Dispatch
    rng: random.Random
    max_output_bytes: int

    def admitted(
        self, spec: registry_pb2.ModelSpec, ctx: RequestContext, size: int, *, begun: bool = False
    ) -> Place:
        """A place among the running requests, for `size` tokens or rows at most."""
        return self.gate.admitted(
            ctx.deadline,
            model=spec.name,
            priority=ctx.priority,
            size=size,
            begun=begun,
            tenant=ctx.tenant,
            weight=self.tenants.weight(ctx.tenant),
            model_weight=spec.weight or 1.0,
        )

    async def text(self, spec: registry_pb2.ModelSpec, ctx: RequestContext) -> ModelText:
        """The text side of a revision; raises `DeadlineExceeded` when it is not loaded in time."""
        try:
            async with asyncio.timeout(max(ctx.deadline - time.monotonic(), 0)):
                return await self.texts.get(spec)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while the model's tokenizer was being loaded"
            ) from None
