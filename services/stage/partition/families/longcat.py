"""LongCat Flash: a layer has two attentions, each with a cache entry of its own."""

from .plain import Family


class Longcat(Family):
    """Entries 2 i and 2 i + 1 of the cache are layer i's."""

    caches = 2
