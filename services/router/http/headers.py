"""What a response's headers say about how it was answered. Pure."""

from collections.abc import Sequence

from stagemesh.v1.inference_pb2 import CacheStatus
from stagemesh.v1.stage_pb2 import RouteHop

_CACHE: dict[int, str] = {
    CacheStatus.CACHE_STATUS_HIT: "hit",
    CacheStatus.CACHE_STATUS_MISS: "miss",
    CacheStatus.CACHE_STATUS_BYPASS: "bypass",
    CacheStatus.CACHE_STATUS_ERROR: "error",
}


def answer_headers(request_id: str, cache: int, route: Sequence[RouteHop]) -> dict[str, str]:
    """`x-request-id`, `x-stagemesh-cache` and, when something was dispatched, `x-stagemesh-route`."""
    headers = {"x-request-id": request_id, "x-stagemesh-cache": _CACHE.get(cache, "bypass")}
    if route:
        headers["x-stagemesh-route"] = ",".join(f"{hop.stage}={hop.replica_id}" for hop in route)
    return headers
