"""MiniMax: lightning attention, whose state lies in a cache class of its own."""

from transformers.models.minimax.modeling_minimax import MiniMaxCache

from ..cache import PartCache
from .plain import Family


class _LightningCache(PartCache, MiniMaxCache):
    """MiniMax's cache, for a partition that may begin with any kind of layer."""


class MiniMax(Family):
    """A cache entry appears with the layer's first tokens, so there is nothing to cut."""

    def cache(self, first: int, end: int) -> PartCache:
        """An empty one."""
        return _LightningCache()
