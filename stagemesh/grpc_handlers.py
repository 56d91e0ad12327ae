"""A server that wraps its handlers once, when they are added, instead of by interceptors at every call.

grpc.aio asks its interceptors anew for each call, in coroutines of their own. It also waits for calls with one task
for each registered method and looks through all of them whenever one comes; generated code registers its methods,
and leaving that out costs nothing, since the same handlers are found by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grpc

Wrap = Callable[[Any, str], Any]
"""(handler, "/package.Service/Method") -> handler"""


class HandlerServer(grpc.aio.Server):
    """A `grpc.aio.Server` over another; `wraps` are put around each handler, the last one outermost."""

    def __init__(self, server: grpc.aio.Server, wraps: Sequence[Wrap]) -> None:
        self._server = server
        self._wraps = tuple(wraps)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers of services, wrapped."""
        self._server.add_generic_rpc_handlers(
            tuple(_Wrapped(each, self._wraps) for each in generic_rpc_handlers)
        )

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Nothing: generated code adds the same handlers as generic ones."""

    def add_insecure_port(self, address: str) -> int:
        """See `grpc.aio.Server`."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """See `grpc.aio.Server`."""
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """See `grpc.aio.Server`."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """See `grpc.aio.Server`."""
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """See `grpc.aio.Server`."""
        return bool(await self._server.wait_for_termination(timeout))


class _Wrapped(grpc.GenericRpcHandler):
    """Keeps the wrapped handler of every method that was called once."""

    def __init__(self, inner: grpc.GenericRpcHandler, wraps: Sequence[Wrap]) -> None:
        self._inner = inner
        self._wraps = wraps
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The wrapped handler of the called method, or None."""
        method: str = handler_call_details.method
        known = self._known.get(method)
        if known is None:
            known = self._inner.service(handler_call_details)
            if known is None:  # a stranger's method: nothing is kept of it
                return None
            for wrap in self._wraps:
                known = wrap(known, method)
            self._known[method] = known
        return known
