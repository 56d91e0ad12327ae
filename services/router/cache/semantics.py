"""What a generation has to do with answers to other questions, in one place: look, verify, keep, count."""

from stagemesh.v1 import cache_pb2

from ..context import RequestContext
from ..prepare import Plan
from .semantic import SemanticClient, Sought
from .semantic_verify import Verifier
from .usage import CacheUsageCounter


class Semantics:
    """Plain methods return at once; what they begin runs in the background."""

    def __init__(self, client: SemanticClient, verifier: Verifier, usage: CacheUsageCounter) -> None:
        self.client = client
        self.usage = usage
        self._verifier = verifier

    def __repr__(self) -> str:
        return f"Semantics({self.client!r}, {self._verifier!r}, {self.usage!r})"

    def served(
        self, plan: Plan, ctx: RequestContext, sought: Sought, kept: cache_pb2.CachedGeneration
    ) -> None:
        """Another question's answer was given."""
        self.usage.hit(plan.spec.name, kept, semantic=True)
        self._verifier.after_hit(plan, ctx, sought, text_of(kept))

    def computed(
        self, plan: Plan, ctx: RequestContext, sought: Sought | None, real: cache_pb2.CachedGeneration
    ) -> None:
        """The answer was computed and stored: others may find it, and it shows whether a kept one was right."""
        self.client.keep(plan, ctx, sought)
        if sought is not None:
            self._verifier.after_miss(plan, ctx, sought, text_of(real))

    async def close(self) -> None:
        """Give up verifications; let what is on its way to a cache arrive."""
        await self._verifier.close()
        await self.client.close()
        await self.usage.close()


def text_of(kept: cache_pb2.CachedGeneration) -> str:
    """The whole answer."""
    return "".join(chunk.text for chunk in kept.chunks)
