"""What a response's headers say about how it was answered. Pure."""

from collections.abc import Sequence

from stagemesh.v1.inference_pb2 import CacheStatus, SemanticHit
from stagemesh.v1.stage_pb2 import RouteHop

_CACHE: dict[int, str] = {
    CacheStatus.CACHE_STATUS_HIT: "hit",
    CacheStatus.CACHE_STATUS_MISS: "miss",
    CacheStatus.CACHE_STATUS_BYPASS: "bypass",
    CacheStatus.CACHE_STATUS_ERROR: "error",
    CacheStatus.CACHE_STATUS_SEMANTIC: "semantic",
}


def answer_headers(
    request_id: str, cache: int, route: Sequence[RouteHop], semantic: SemanticHit | None = None
) -> dict[str, str]:
    """`x-request-id`, `x-stagemesh-cache` and, when something was dispatched, `x-stagemesh-route`.

    Of another question's answer also how alike the questions are, and how many such answers are wrong at most.
    """
    headers = {"x-request-id": request_id, "x-stagemesh-cache": _CACHE.get(cache, "bypass")}
    if route:
        headers["x-stagemesh-route"] = ",".join(f"{hop.stage}={hop.replica_id}" for hop in route)
    if semantic is not None and cache == CacheStatus.CACHE_STATUS_SEMANTIC:
        headers["x-stagemesh-cache-similarity"] = f"{semantic.similarity:.4f}"
        headers["x-stagemesh-cache-false-hit-bound"] = f"{semantic.false_hit_bound:.4g}"
    return headers
