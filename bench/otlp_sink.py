"""`python -m bench.otlp_sink`: takes spans over OTLP/gRPC as a collector does, keeps them unread, and counts them when asked.

Nothing is decoded while spans come in: on a machine of few cores that would be measured as the mesh's own work.
"""

import argparse
import asyncio
import struct

import grpc.aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.children import announce_port

EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"
COUNT = "stagemesh.bench.Sink"


class Sink:
    """The two methods, on raw bytes."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    async def export(self, request: bytes, context: object) -> bytes:
        """Keep what came; the answer is an empty ExportTraceServiceResponse."""
        self._kept.append(request)
        return b""

    async def count(self, request: bytes, context: object) -> bytes:
        """Spans and bytes so far."""
        spans = 0
        for data in self._kept:
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                spans += sum(len(scope.spans) for scope in resource.scope_spans)
        return struct.pack("<QQ", spans, sum(map(len, self._kept)))


async def counted(endpoint: str) -> tuple[int, int]:
    """Spans and bytes that the sink at host:port has got so far."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        answer: bytes = await channel.unary_unary(f"/{COUNT}/Count")(b"")
    spans, size = struct.unpack("<QQ", answer)
    return spans, size


async def _serve(port_file: str) -> None:
    sink, server = Sink(), grpc.aio.server()
    for service, method, handler in ((EXPORT, "Export", sink.export), (COUNT, "Count", sink.count)):
        handlers = {method: grpc.unary_unary_rpc_method_handler(handler)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce_port(port_file, port)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    asyncio.run(_serve(parser.parse_args().port_file))
