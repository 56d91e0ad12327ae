"""Run a stage node: `python -m stagemesh.services.stage --etcd HOST:PORT`."""

import asyncio
import logging
import os
import secrets
import socket
import time
from typing import NoReturn

import torch

import stagemesh
from stagemesh.config import load_config
from stagemesh.errors import ConfigError
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.loop_lag import LoopLag
from stagemesh.malloc import keep_large_blocks
from stagemesh.metrics import serve_metrics
from stagemesh.planning.profile import default_folder
from stagemesh.process import leave
from stagemesh.records import check_name
from stagemesh.reporting import Reporter
from stagemesh.tracing import setup_tracing, shutdown_tracing
from stagemesh.v1.registry_pb2 import NodeRecord

from .config import StageConfig
from .measure import choose_device, device_name, free_memory, known_speed
from .node import Node
from .partition.trials import TRIALS
from .precedence import go_behind
from .servicer import SERVICE, StageServicer
from .shared_memory_segment import sweep
from .watcher import EXIT_HANGS


async def main() -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    keep_large_blocks()
    config = load_config(StageConfig, prog="stagemesh stage")
    go_behind(config.process_nice)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    host = socket.gethostname().lower()[:40].strip("-.") or "node"
    node_id = check_name(config.node_id or f"{host}-{secrets.token_hex(3)}", "node_id")
    setup_tracing("stagemesh-stage", node_id)
    if config.threads:
        torch.set_num_threads(config.threads)
    data = config.data_dir or default_folder().parent
    TRIALS.use(data)
    device = choose_device(config.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {config.device} was asked for, but torch sees no CUDA device here")
    config = config.model_copy(update={"device": device})
    sweep()
    speed = await asyncio.to_thread(known_speed, data, device)

    etcd = Etcd(config.etcd, ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
    await etcd.start()
    metrics = serve_metrics(config.metrics_port, config.host)
    async with LoopLag() as lag:
        server = GrpcServer(config.host, config.port, max_message_bytes=config.max_message_bytes)
        lease = await etcd.lease(config.lease_ttl_s)
        record = NodeRecord(
            node_id=node_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=device,
            device_name=device_name(device),
            memory_bytes=config.memory or free_memory(device),
            threads=torch.get_num_threads(),
            gflops=speed.gflops,
            memory_gbps=speed.memory_gbps,
            zone=config.zone,
            started_unix_ms=int(time.time() * 1000),
            version=stagemesh.__version__,
        )
        node = Node(config, record, etcd, lease, lag)
        servicer = StageServicer(node.find, node.status, config.max_message_bytes, config.local_sockets)
        server.server.add_generic_rpc_handlers((servicer.handler(),))
        record.address = config.address(await server.start([SERVICE]))
        follower = asyncio.create_task(node.run(), name="node")
        await server.set_serving(True)
        print(f"stage node {node_id} on {record.address}: {device}, {record.threads} threads", flush=True)
        stop = asyncio.create_task(serve_until_signal(), name="signals")
        hangs = asyncio.create_task(node.given_up.wait(), name="hangs")
        async with Reporter(etcd, node_id, node.load_report):
            await asyncio.wait({stop, follower, hangs}, return_when=asyncio.FIRST_COMPLETED)
        await server.set_serving(False)
        await node.drain()
        for task in (follower, stop, hangs):
            task.cancel()
        await asyncio.gather(follower, stop, hangs, return_exceptions=True)
        await server.stop(1.0)
    if metrics is not None:
        metrics.close()
    await etcd.close()
    await shutdown_tracing()
    if node.given_up.is_set():
        leave(EXIT_HANGS, f"{node.why}; the process ends so that another takes its place")
    if follower.done() and not follower.cancelled() and (error := follower.exception()):
        raise error


def start() -> NoReturn:
    """Run the service as this process; does not return."""
    run(main())


if __name__ == "__main__":
    start()
