"""`deploy`, `scale`, `undeploy`: what the registry is asked to change."""

import asyncio
import json
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY, Certificate, Force, Json, Registry, certificate_text
from stagemesh.cli.progress import Progress
from stagemesh.cli.scaling import Idle, Max, Min, TargetKv, TargetQueue, scaling_of
from stagemesh.local import deployment
from stagemesh.v1 import registry_pb2

Name = Annotated[str, typer.Argument(help="Name of the deployed model.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every replica is ready.")]
WaitTimeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0.001)]


@one_line_errors
def deploy(
    model: Annotated[str, typer.Argument(help="Local folder (readable by every node) or hub id.")],
    name: Annotated[
        str, typer.Option(help="Name to serve it under; derived from MODEL when not given.")
    ] = "",
    revision: Annotated[str, typer.Option(help="Hub revision.")] = "",
    stages: Annotated[int, typer.Option(help="Partitions.", min=1)] = 1,
    replicas: Annotated[int, typer.Option(help="Replicas of each stage.", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="F32, BF16 or F16; the checkpoint's own when not given.")] = "",
    policy: Annotated[str, typer.Option(help="Balancing policy; the router's default when not given.")] = "",
    zone: Annotated[
        list[str] | None, typer.Option(help="Only nodes in this zone; may be given more than once.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Answer from the cache.")] = True,
    cache_ttl: Annotated[int, typer.Option(help="Seconds an answer stays valid; 0: default.", min=0)] = 0,
    least: Min = None,
    most: Max = None,
    target_queue_ms: TargetQueue = None,
    target_kv: TargetKv = None,
    idle: Idle = None,
    canary: Annotated[
        float,
        typer.Option(
            help="Of an update: the share of new sessions that the new revision gets first, then a quarter, then all.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    canary_s: Annotated[
        int, typer.Option(help="Seconds that each share is watched; 0: 60. Only with --canary.", min=0)
    ] = 0,
    force: Force = False,
    certificate: Certificate = None,
    registry: Registry = DEFAULT_REGISTRY,
    wait: Wait = True,
    timeout: WaitTimeout = 600.0,
    as_json: Json = False,
) -> None:
    """Deploy a model, or change how it is deployed.

    Of a model that serves, another revision is brought up beside it, and takes over when it is ready, or share by share with
    --canary; one that fails more often or is slower is taken back. `stagemesh rollout` tells how that goes.

    With --min, --max or a target it scales itself: the stage that limits it grows while steps wait there longer than the
    target, and shrinks when it has much to spare. --replicas is where it begins.
    """
    request = registry_pb2.DeployRequest(
        source=deployment.absolute_source(model),
        name=name,
        hub_revision=revision,
        stages=stages,
        replicas=replicas,
        dtype=dtype,
        policy=policy,
        zones=zone or (),
        cache=cache,
        cache_ttl_s=cache_ttl,
        force=force,
        certificate=certificate_text(certificate),
        scaling=scaling_of(least, most, target_queue_ms, target_kv, idle),
        canary=canary,
        canary_s=canary_s,
    )

    async def run() -> registry_pb2.ModelSpec:
        spec = await deployment.deploy(registry, request)
        await _wait(registry, spec.name, timeout, wait, deployment.wanted_revision(spec))
        return await deployment.model(registry, spec.name) if wait else spec

    _print(asyncio.run(run()), as_json, "deployed")


@one_line_errors
def scale(
    name: Name,
    replicas: Annotated[
        int | None,
        typer.Argument(help="Replicas wanted of each stage, or of --stage.", min=1, show_default=False),
    ] = None,
    stage: Annotated[int | None, typer.Option(help="Only this stage.", min=0, show_default=False)] = None,
    policy: Annotated[
        str | None,
        typer.Option(help='Balancing policy from now on; "default": the router\'s own.', show_default=False),
    ] = None,
    fixed: Annotated[
        int | None, typer.Option("--replicas", help="The same as REPLICAS.", min=1, show_default=False)
    ] = None,
    least: Min = None,
    most: Max = None,
    target_queue_ms: TargetQueue = None,
    target_kv: TargetKv = None,
    idle: Idle = None,
    registry: Registry = DEFAULT_REGISTRY,
    wait: Wait = True,
    timeout: WaitTimeout = 600.0,
    as_json: Json = False,
) -> None:
    """Change how many replicas a model has, or how sessions are balanced over them.

    REPLICAS is a fixed number. With --min, --max or a target the model scales itself within these limits, stage by stage; what is
    not named stays as it is. `stagemesh events` tells what was decided, and why.
    """
    if replicas is not None and fixed is not None and replicas != fixed:
        raise typer.BadParameter("say REPLICAS or --replicas, not both")
    replicas = fixed if replicas is None else replicas
    limits = (least, most, target_queue_ms, target_kv, idle)
    scales_itself = any(each is not None for each in limits)
    if replicas is None and policy is None and not scales_itself:
        raise typer.BadParameter("say how many REPLICAS, limits like --min and --max, or which --policy")
    if replicas is not None and scales_itself:
        raise typer.BadParameter("either a fixed number of REPLICAS, or limits like --min and --max")

    async def run() -> registry_pb2.ModelSpec:
        before = await deployment.scaling(registry, name) if scales_itself else None
        spec = await deployment.scale(
            registry, name, replicas or 0, stage, policy, scaling_of(*limits, before)
        )
        await _wait(registry, name, timeout, wait)
        return spec

    _print(asyncio.run(run()), as_json, "scaled")


@one_line_errors
def undeploy(name: Name, registry: Registry = DEFAULT_REGISTRY) -> None:
    """Remove a model from the mesh."""
    asyncio.run(deployment.undeploy(registry, name))
    typer.echo(f"{name}: undeployed")


async def _wait(registry: str, name: str, timeout_s: float, wait: bool, revision: str = "") -> None:
    if wait:
        async with Progress(Console(stderr=True)) as progress:
            await deployment.wait_in_registry(registry, name, progress, timeout_s, revision)


def _print(spec: registry_pb2.ModelSpec, as_json: bool, verb: str) -> None:
    if as_json:
        typer.echo(json.dumps(json_format.MessageToDict(spec, preserving_proto_field_name=True)))
        return
    replicas = "/".join(str(count) for count in spec.replicas)
    typer.echo(f"{spec.name}: {verb}, {len(spec.partitions)} stages, {replicas} replicas")
