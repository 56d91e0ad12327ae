"""From an RPC's metadata to the request's context, and from an answer to trailing metadata."""

from collections.abc import Sequence

import grpc.aio

from stagemesh.v1 import inference_pb2, stage_pb2

from .admission.priority import HEADER as PRIORITY_HEADER
from .cache.client import SEMANTIC, STATUS_NAMES
from .context import RequestContext
from .core import RouterCore
from .routing import route_header


def open_context(
    core: RouterCore, rpc: grpc.aio.ServicerContext, priority: str = "", seconds: float | None = None
) -> RequestContext:
    """The context of an RPC: metadata, and the deadline that the caller set.

    Args:
        core: the router.
        rpc: the call.
        priority: the class that the message itself asks for, instead of the metadata's.
        seconds: how long the caller waits, as the message says; the call's own deadline counts as well.

    Raises:
        Unauthenticated: by the API key.
        PermissionDenied: the API key does not allow that priority.
    """
    metadata = {key: value for key, value in rpc.invocation_metadata() or () if isinstance(value, str)}
    if priority:
        metadata[PRIORITY_HEADER] = priority
    left = rpc.time_remaining()
    # Without a deadline gRPC says None or a number of years.
    if left is not None and left < 10**7 and (seconds is None or left < seconds):
        seconds = left
    ctx = core.context(metadata, seconds)
    # Also with an error: it tells one that the router gave from a connection that broke.
    rpc.set_trailing_metadata((("x-request-id", ctx.request_id),))
    return ctx


def said_in_message(rpc: grpc.aio.ServicerContext) -> None:
    """The answer's own fields hold what `answered` says: a small request would pay a twentieth of its time for it."""
    rpc.set_trailing_metadata(())


def answered(
    rpc: grpc.aio.ServicerContext,
    ctx: RequestContext,
    cache: int,
    route: Sequence[stage_pb2.RouteHop],
    semantic: inference_pb2.SemanticHit | None = None,
) -> None:
    """Say in trailing metadata under which id, from where and along which route the answer came."""
    trailing = [("x-request-id", ctx.request_id), ("stagemesh-cache", STATUS_NAMES.get(cache, "bypass"))]
    if route:
        trailing.append(("x-stagemesh-route", route_header(list(route))))
    if semantic is not None and cache == SEMANTIC:
        trailing.append(("x-stagemesh-cache-similarity", f"{semantic.similarity:.4f}"))
        trailing.append(("x-stagemesh-cache-false-hit-bound", f"{semantic.false_hit_bound:.4g}"))
    rpc.set_trailing_metadata(tuple(trailing))
