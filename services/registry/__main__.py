"""`python -m stagemesh.services.registry`: starts the registry and runs it until a signal."""

import asyncio
import logging
import os
import time
import uuid
from contextlib import AsyncExitStack

from stagemesh import tracing
from stagemesh.announce import announce
from stagemesh.config import load_config
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.loop_lag import LoopLag
from stagemesh.metrics import serve_metrics
from stagemesh.v1.registry_pb2 import ServiceRecord
from stagemesh.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server

from .autoscale import Autoscale
from .config import RegistryConfig
from .controller import Controller
from .events import Events
from .leadership import Leadership
from .mirror import Mirror
from .models import Models
from .node_pool import NodePool, pool_of
from .preload import Preloader
from .preload.keeper import PreloadKeeper
from .reports import ReportDoor, clocked
from .rollout.recuts import Recuts
from .rollout.run import Rollouts
from .scales import Scales
from .servicer import Registry

_SERVICE = "stagemesh.v1.RegistryService"
_GRACE_S = 5.0
_HEALTH_S = 0.5


async def main() -> None:
    """Connect to etcd, serve the admin RPCs, control; leave in the opposite order."""
    config = load_config(RegistryConfig, prog="stagemesh registry")
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    registry_id = f"registry-{uuid.uuid4().hex[:8]}"
    tracing.setup_tracing("registry", registry_id)
    etcd = Etcd(config.etcd, ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(tracing.shutdown_tracing)
        if metrics_server := serve_metrics(config.metrics_port, config.host):
            stack.callback(metrics_server.close)
        await stack.enter_async_context(LoopLag())
        await etcd.start()
        stack.push_async_callback(etcd.close)

        events = await stack.enter_async_context(Events(etcd, registry_id))
        mirror = Mirror(etcd)
        scales = Scales(etcd, mirror)
        leadership = Leadership(etcd, registry_id, config.lease_ttl_s)
        controller = Controller(etcd, mirror, leadership, config.patience())
        nodes = NodePool(pool_of(config.node_pool, etcd, leadership), config.node_bounds(), events)
        preloader = Preloader(keep_s=config.idle_s, epoch_s=time.time() - time.monotonic())
        keeper = PreloadKeeper(etcd, leadership, preloader)
        autoscale = Autoscale(
            etcd, mirror, leadership, controller, events, nodes, config.scaling(), preloads=preloader
        )
        models = Models(etcd, mirror)
        rollouts = Rollouts(
            models, mirror, leadership, events, lambda: controller.history, config.rollout_limits()
        )
        recuts = Recuts(models, mirror, leadership, events, config.recut_patience())
        reports = ReportDoor(
            leadership, [clocked(autoscale.take), clocked(rollouts.take), clocked(recuts.take)]
        )
        server = GrpcServer(config.host, config.port)
        add_RegistryServiceServicer_to_server(
            Registry(etcd, mirror, controller, scales, events, reports, models, recuts, config.max_nodes),
            server.server,
        )
        port = await server.start([_SERVICE])
        stack.push_async_callback(server.stop, _GRACE_S)

        tasks = [
            asyncio.create_task(mirror.follow(), name="mirror"),
            asyncio.create_task(controller.run(), name="controller"),
            asyncio.create_task(rollouts.run(), name="rollouts"),
            asyncio.create_task(recuts.run(), name="recuts"),
            asyncio.create_task(autoscale.run(), name="autoscale"),
            asyncio.create_task(keeper.run(), name="preload"),
            asyncio.create_task(_report_health(server, etcd, mirror), name="health"),
        ]
        stack.push_async_callback(leadership.resign)
        stack.push_async_callback(_end, tasks)
        record = ServiceRecord(
            kind="registry",
            id=registry_id,
            address=config.address(port),
            pid=os.getpid(),
            started_unix_ms=int(time.time() * 1000),
        )
        await stack.enter_async_context(announce(etcd, record, ttl_s=config.lease_ttl_s))
        signalled = asyncio.create_task(serve_until_signal(), name="signal")
        tasks.append(signalled)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _report_health(server: GrpcServer, etcd: Etcd, mirror: Mirror) -> None:
    """SERVING while etcd answers and the records are known."""
    await mirror.synced.wait()
    serving: bool | None = None
    while True:
        if serving != etcd.connected:
            serving = etcd.connected
            await server.set_serving(serving)
        await asyncio.sleep(_HEALTH_S)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    run(main())
