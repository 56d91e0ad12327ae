"""`serve MODEL`: a whole mesh on this machine for one model, or for those that it served before, until a signal."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY_PORT, Certificate, Force, certificate_text
from stagemesh.cli.progress import Progress
from stagemesh.cli.scaling import Idle, Max, Min, TargetKv, TargetQueue, scaling_of
from stagemesh.cli.signals import run_until_signal
from stagemesh.errors import ConfigError, StagemeshError
from stagemesh.local import LocalMesh
from stagemesh.local.deployment import deployments
from stagemesh.local.etcd_server import etcd_binary
from stagemesh.local.leftovers import Leftovers
from stagemesh.local.ports import claim

if TYPE_CHECKING:
    from stagemesh.checkpoint import Checkpoint


@one_line_errors
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="Local folder or hub id; may be left out with --data: what was deployed comes back.",
            show_default=False,
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(help="Name to serve it under; derived from MODEL when not given.")
    ] = "",
    stages: Annotated[int, typer.Option(help="Partitions.", min=1)] = 1,
    replicas: Annotated[int, typer.Option(help="Replicas of each stage.", min=1)] = 1,
    nodes: Annotated[
        int,
        typer.Option(
            help="Stage processes; 0: stages x replicas, with --data at least as many as before.", min=0
        ),
    ] = 0,
    max_nodes: Annotated[
        int,
        typer.Option(
            help="Stage processes at most: more are started when replicas find no room, or take each other's time, and stopped "
            "when empty. Cores and memory are shared out over so many.",
            min=0,
            show_default=False,
        ),
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what is deployed: serve with it again, and the same models come back.",
            show_default=False,
        ),
    ] = None,
    routers: Annotated[int, typer.Option(help="Routers; more than one: clients fail over.", min=1)] = 1,
    http_port: Annotated[int, typer.Option(help="Router's HTTP port; 0: any.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Router's gRPC port; 0: any.", min=0, max=65535)] = 8001,
    registry_port: Annotated[
        int, typer.Option(help="Registry's gRPC port; 0: any.", min=0, max=65535)
    ] = DEFAULT_REGISTRY_PORT,
    registries: Annotated[int, typer.Option(help="Registries, of which one leads.", min=1)] = 1,
    etcd_members: Annotated[
        int,
        typer.Option(help="Members of the etcd that is started: 1, or 3, of which any may be lost.", min=1),
    ] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    etcd: Annotated[
        str, typer.Option(envvar="STAGEMESH_ETCD", help="host:port,... of your etcd; else one is started.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="F32, BF16 or F16; the checkpoint's own when not given.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 ...")] = "auto",
    policy: Annotated[str, typer.Option(help="Balancing policy; the router's default when not given.")] = "",
    threads: Annotated[int, typer.Option(help="Threads per stage; 0: cores shared out.", min=0)] = 0,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Answer from the cache.")] = True,
    least: Min = None,
    most: Max = None,
    target_queue_ms: TargetQueue = None,
    target_kv: TargetKv = None,
    idle: Idle = None,
    force: Force = False,
    certificate: Certificate = None,
    api_keys: Annotated[
        str, typer.Option(help="File with API keys for the router.", show_default=False)
    ] = "",
) -> None:
    """Serve a model on this machine, cut into stages; Ctrl-C stops everything.

    With --min, --max or a target the model scales itself: see `stagemesh scale --help`.

    With --data nothing that was deployed is forgotten: `stagemesh serve --data DIR` brings back every model, also those that
    `stagemesh deploy` added, and after a crash of the machine.
    """
    if not model and data is None:
        raise ConfigError("say which MODEL to serve, or with --data DIR where it was served before")
    if data is not None and etcd:
        raise ConfigError(
            "--data is for the etcd that serve starts; your --etcd keeps what is deployed itself"
        )
    # What can be found wrong without starting anything is said first.
    claim({"http": http_port, "grpc": grpc_port, "registry": registry_port}, host)
    if not etcd:
        etcd_binary()
    check_programs()
    proof = certificate_text(certificate)
    if model:
        found = check_source(model)
        if not (force or proof):
            check_split(found, model, stages)
    mesh_flags = {"router": {"api-keys": os.path.abspath(api_keys)}} if api_keys else {}
    out = Console(highlight=False, markup=False, soft_wrap=True)

    async def run() -> None:
        async with Progress(Console(stderr=True)) as progress:
            mesh = LocalMesh(
                stages=stages,
                replicas=replicas,
                routers=routers,
                host=host,
                http_port=http_port,
                grpc_port=grpc_port,
                registry_port=registry_port,
                etcd=etcd or None,
                threads=threads or None,
                device=device,
                flags=mesh_flags,
                progress=progress,
                nodes=nodes,
                max_nodes=max_nodes,
                registries=registries,
                etcd_members=etcd_members,
                data=data,
            )
            try:
                async with mesh:
                    if model:
                        spec = await mesh.deploy(
                            model,
                            name,
                            dtype=dtype,
                            policy=policy,
                            cache=cache,
                            force=force,
                            certificate=proof,
                            scaling=scaling_of(least, most, target_queue_ms, target_kv, idle),
                        )
                        out.print(f"{spec.name} is served by {stages} stages x {replicas} replicas")
                    else:
                        for line in await bring_back(mesh):
                            out.print(line)
                    for line in addresses(mesh):
                        out.print(line)
                    out.print("Ctrl-C stops it")
                    progress.idle()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        progress.busy("stopping")
            finally:
                progress("stopped")

    leftovers = Leftovers.before()
    run_until_signal(run())
    left = leftovers.found()
    if left:
        raise ConfigError("left behind: " + ", ".join(left))


async def bring_back(mesh: LocalMesh) -> list[str]:
    """Wait for every model that was deployed before; a line on each, also where it does not come up."""
    lines: list[str] = []
    for found in await deployments(mesh.registry_address):
        name = found.model.name
        try:
            await mesh.wait_ready(name)
            lines.append(f"{name} is served by {len(found.model.partitions)} stages")
        except StagemeshError as error:
            lines.append(f"{name} does not come up: {error.message}")
    return lines or ["nothing is deployed yet: `stagemesh deploy MODEL` does"]


def check_source(model: str) -> "Checkpoint":
    """What the checkpoint is; raises `CheckpointError` or `NotFound` when it cannot be served. Reads headers only."""
    from stagemesh.checkpoint import inspect_source

    return inspect_source(model)


def check_split(found: "Checkpoint", model: str, stages: int) -> None:
    """Raise `FailedPrecondition` when no certificate vouches for the split: the registry would refuse it."""
    from stagemesh import parity

    parity.require(parity.shipped(), found, model, stages)


def check_programs() -> None:
    """Raise `ConfigError` when the packages of the services are not installed."""
    from stagemesh.cli.doctor import missing_packages

    missing = missing_packages()
    if missing:
        raise ConfigError(f"{', '.join(missing)} not installed: `pip install 'stagemesh[all]'`")


def addresses(mesh: LocalMesh) -> list[str]:
    """Where to reach the mesh, a line each."""
    return [
        *(f"  HTTP      http://{address}/v1 (OpenAI-compatible)" for address in mesh.http_addresses),
        f"  gRPC      {','.join(mesh.grpc_addresses)}",
        f"  registry  {mesh.registry_address}",
        f"  etcd      {mesh.etcd_endpoints}",
        f"  logs      {mesh.folder or Path()}",
    ]
