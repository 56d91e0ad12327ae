"""`python -m stagemesh.services.router`: starts both doors, and drains them on SIGTERM."""

import asyncio
import logging
import os
import socket
import sys
import time
from contextlib import AsyncExitStack
from importlib import metadata

import uvicorn

from stagemesh.announce import announce
from stagemesh.config import load_config
from stagemesh.errors import ConfigError
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.loop_lag import LoopLag
from stagemesh.metrics import serve_metrics
from stagemesh.oip import open_inference_pb2_grpc as oip_grpc
from stagemesh.reporting import Reporter
from stagemesh.tracing import setup_tracing, shutdown_tracing
from stagemesh.v1 import inference_pb2_grpc, registry_pb2

from .config import RouterConfig
from .core import RouterCore
from .http.app import create_app
from .oip.servicer import OpenInferenceServicer
from .servicer import InferenceServicer

log = logging.getLogger(__name__)
SERVICES = ["stagemesh.v1.InferenceService", "inference.GRPCInferenceService"]
HTTP_STOP_S = 5.0


class HttpDoor:
    """The HTTP application on a uvicorn server inside this loop, its signal handlers off."""

    def __init__(self, core: RouterCore, host: str, port: int) -> None:
        self._socket = _listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            create_app(core), log_config=None, access_log=False, lifespan="on", server_header=False
        )
        config.timeout_graceful_shutdown = int(HTTP_STOP_S)
        self._server = uvicorn.Server(config)
        # What `serve` does, without taking the process's signals.
        self._task = asyncio.create_task(self._server._serve([self._socket]))

    async def started(self) -> None:
        """Return when it accepts connections; raises what stopped it."""
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise ConfigError("the HTTP server did not start")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Close idle connections, let running answers end within a few seconds."""
        self._server.should_exit = True
        await asyncio.wait([self._task], timeout=HTTP_STOP_S + 2)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()


async def main() -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    config = load_config(RouterConfig, prog="stagemesh router")
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    instance = f"router-{os.getpid()}"
    setup_tracing("stagemesh-router", instance)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(shutdown_tracing)
        etcd = Etcd(config.etcd, ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
        core = RouterCore(config, etcd)
        stack.push_async_callback(etcd.close)
        await etcd.start()
        metrics_server = serve_metrics(config.metrics_port, config.host)
        if metrics_server is not None:
            stack.push_async_callback(asyncio.to_thread, metrics_server.close)
        await stack.enter_async_context(LoopLag())
        await stack.enter_async_context(core)
        door = GrpcServer(config.host, config.port, max_message_bytes=config.max_message_bytes)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core), door.server)
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(core, metadata.version("stagemesh")), door.server
        )
        grpc_port = await door.start(SERVICES)
        stack.push_async_callback(door.stop, 0.5)
        http = HttpDoor(core, config.host, config.http_port)
        stack.push_async_callback(http.stop)
        await http.started()
        record = registry_pb2.ServiceRecord(
            kind="router",
            id=f"{socket.gethostname().split('.')[0][:40]}-{os.getpid()}",
            address=config.address(grpc_port),
            http_address=f"{config.address(grpc_port).rpartition(':')[0]}:{http.port}",
            pid=os.getpid(),
            started_unix_ms=int(time.time() * 1000),
        )
        demand = core.telemetry.demand
        reporter = Reporter(etcd, record.id, lambda covers_s: demand.report(record.id, covers_s))
        async with announce(etcd, record, ttl_s=config.lease_ttl_s), reporter:
            await door.set_serving(True)
            print(
                f"router ready: gRPC {config.host}:{grpc_port}, HTTP http://{config.host}:{http.port}, "
                f"etcd {config.etcd}",
                flush=True,
            )
            await serve_until_signal()
            await door.set_serving(False)
        await _drain(core, config.drain_s)


async def _drain(core: RouterCore, grace_s: float) -> None:
    """Let running requests finish; what is left after the grace is told to go on elsewhere, and the doors close."""
    try:
        async with asyncio.timeout(grace_s):
            await core.drained()
    except TimeoutError:
        print(f"router: {core!r} after {grace_s:g} s of draining, closing", file=sys.stderr)
        core.hand_over.begin()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
        listening.setblocking(False)
    except OSError as error:
        reason = "is taken" if error.errno == 98 else f"cannot be used: {error.strerror}"
        raise ConfigError(f"HTTP port {port} on {host} {reason}; choose another with --http-port") from None
    return listening


if __name__ == "__main__":
    # The router computes nothing. transformers would import torch where it happens to be installed, for
    # seconds and a few hundred megabytes: hide it, as in the router's own image, and say nothing of it.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run(main())
