"""StageService: what routers and other replicas call on a node."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager

import grpc

from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_errors import FAILED_REPLICA
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.local_door import offer_door
from stagemesh.v1.stage_pb2 import (
    Feedback,
    ForwardRequest,
    ForwardResponse,
    GetNodeStatusRequest,
    NodeStatus,
    OpenSession,
    PrefixReport,
    RerouteRequest,
    RerouteResponse,
    RouteHop,
    SessionEvent,
    WatchPrefixesRequest,
)

from .forward_stream import forward_stream
from .head import Head
from .hosted import Hosted
from .prefix_reports import watch_prefixes
from .relay import relay
from .replica import Replica

SERVICE = "stagemesh.v1.StageService"


class StageServicer:
    """Finds the replica that a call is for, and hands the call over."""

    def __init__(
        self,
        hosted: Callable[[str], Hosted | None],
        status: Callable[[], NodeStatus],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        local_sockets: bool = True,
    ) -> None:
        self._hosted = hosted
        self._status = status
        self._local_sockets = local_sockets
        self._max_message_bytes = max_message_bytes

    async def generate(
        self, request: OpenSession, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[SessionEvent]:
        """Router -> head: one generation."""
        head = self._head(list(request.route), request.model, request.revision)
        with _naming_the_culprit(context, head):
            async with aclosing(head.generate(request)) as events:
                async for event in events:
                    yield event

    async def reroute(self, request: RerouteRequest, context: grpc.aio.ServicerContext) -> RerouteResponse:
        """Router -> head: a running generation goes on along another route."""
        hosted = self._hosted(request.route[0].replica_id) if request.route else None
        if hosted is None or hosted.head is None:
            raise Unavailable("route: its first replica is not a head on this node")
        await hosted.head.reroute(request)
        return RerouteResponse()

    async def forward(self, request: ForwardRequest, context: grpc.aio.ServicerContext) -> ForwardResponse:
        """Router -> head: one stateless micro-batch."""
        head = self._head(list(request.route), request.model, request.revision)
        with _naming_the_culprit(context, head):
            return await head.forward(request)

    async def forward_stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Router -> head: many stateless micro-batches."""

        async def forward(request: ForwardRequest) -> ForwardResponse:
            return await self._head(list(request.route), request.model, request.revision).forward(request)

        door = await offer_door(context) if self._local_sockets else None
        replies = forward_stream(requests, forward, max_reply_bytes=self._max_message_bytes, door=door)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def relay(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Feedback]:
        """Replica -> replica: frames."""
        answers = relay(requests, self._replica, context.peer(), self._max_message_bytes)
        async with aclosing(answers):  # the upstream is lost now, not when the generator is collected
            async for feedback in answers:
                yield feedback

    async def watch_prefixes(
        self, request: WatchPrefixesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[PrefixReport]:
        """Replica -> router: which blocks of prompts it holds."""
        async with aclosing(watch_prefixes(request.replica_id, self._replica)) as reports:
            async for report in reports:
                yield report

    async def get_node_status(
        self, request: GetNodeStatusRequest, context: grpc.aio.ServicerContext
    ) -> NodeStatus:
        """For operators."""
        return self._status()

    def _replica(self, replica_id: str) -> Replica | None:
        hosted = self._hosted(replica_id)
        return hosted.replica if hosted is not None else None

    def _head(self, route: list[RouteHop], model: str, revision: str) -> Head:
        hosted = self._hosted(route[0].replica_id) if route else None
        if hosted is None or hosted.head is None:
            raise Unavailable("route: its first replica is not a head on this node")
        if hosted.assignment.model != model or (revision and hosted.assignment.revision != revision):
            raise Unavailable(f"model {model[:63]!r} of that revision is not loaded here")
        return hosted.head

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's handlers. Streams of requests come as raw bytes: the hand codec reads frames."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Generate": grpc.unary_stream_rpc_method_handler(
                    self.generate, OpenSession.FromString, SessionEvent.SerializeToString
                ),
                "Reroute": grpc.unary_unary_rpc_method_handler(
                    self.reroute, RerouteRequest.FromString, RerouteResponse.SerializeToString
                ),
                "Forward": grpc.unary_unary_rpc_method_handler(
                    self.forward, ForwardRequest.FromString, ForwardResponse.SerializeToString
                ),
                "ForwardStream": grpc.stream_stream_rpc_method_handler(self.forward_stream, None, None),
                "Relay": grpc.stream_stream_rpc_method_handler(self.relay, None, Feedback.SerializeToString),
                "WatchPrefixes": grpc.unary_stream_rpc_method_handler(
                    self.watch_prefixes, WatchPrefixesRequest.FromString, PrefixReport.SerializeToString
                ),
                "GetNodeStatus": grpc.unary_unary_rpc_method_handler(
                    self.get_node_status, GetNodeStatusRequest.FromString, NodeStatus.SerializeToString
                ),
            },
        )


@contextmanager
def _naming_the_culprit(context: grpc.aio.ServicerContext, head: Head) -> Iterator[None]:
    """Say with an error which replica failed: the head itself when no other is known to."""
    try:
        yield
    except StagemeshError as error:
        context.set_trailing_metadata(((FAILED_REPLICA, error.culprit or head.replica_id),))
        raise
