"""`deploy`, `scale`, `undeploy`: what the registry is asked to change."""

import asyncio
import json
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from stagemesh.cli import semantic as semantic_options
from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import (
    DEFAULT_REGISTRY,
    Certificate,
    Force,
    Json,
    Registry,
    certificate_text,
    labels_of,
)
from stagemesh.cli.progress import Progress
from stagemesh.cli.scaling import Idle, Max, Min, TargetKv, TargetQueue, scaling_of
from stagemesh.local import deployment
from stagemesh.planning.pins import parse_pin
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
    stages: Annotated[
        int | None,
        typer.Option(
            help="Partitions; 1, or the planner's choice, when not given.", min=1, show_default=False
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas of each stage; 1 when not given.", min=1, show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="F32, BF16 or F16; the checkpoint's own when not given.")] = "",
    policy: Annotated[str, typer.Option(help="Balancing policy; the router's default when not given.")] = "",
    zone: Annotated[
        list[str] | None, typer.Option(help="Only nodes in this zone; may be given more than once.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Answer from the cache.")] = True,
    cache_ttl: Annotated[int, typer.Option(help="Seconds an answer stays valid; 0: default.", min=0)] = 0,
    semantic: semantic_options.On = False,
    semantic_encoder: semantic_options.Encoder = "",
    allowed_false_hit_rate: semantic_options.Allowed = 0.0,
    semantic_confidence: semantic_options.Confidence = 0.0,
    semantic_verify: semantic_options.VerifyShare = 0.05,
    semantic_loose: semantic_options.Loose = False,
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
    weight: Annotated[
        float, typer.Option(help="Its part of what models share at a router, beside others; 0: 1.", min=0)
    ] = 0.0,
    allow_pending: Annotated[
        bool,
        typer.Option(
            "--allow-pending/--no-allow-pending",
            help="Deploy it although no nodes have room for it now; it waits for some that join.",
        ),
    ] = False,
    plan: Annotated[
        str,
        typer.Option(
            help="Let the planner decide cuts, replicas and nodes, for: throughput, or latency.",
            metavar="WHAT",
        ),
    ] = "",
    auto_recut: Annotated[
        bool, typer.Option("--auto-recut", help="Move cuts by itself when that pays. Only with --plan.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Only nodes with this label, KEY=VALUE; again for more. Only with --plan."),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers that may only lie there: first=zone:A, 0-7=node:n1, last=label:KEY:VALUE. Only with --plan."
        ),
    ] = None,
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
        stages=stages or (0 if plan else 1),
        replicas=replicas or (0 if plan else 1),
        dtype=dtype,
        policy=policy,
        zones=zone or (),
        cache=cache,
        cache_ttl_s=cache_ttl,
        weight=weight,
        allow_pending=allow_pending,
        force=force,
        certificate=certificate_text(certificate),
        scaling=scaling_of(least, most, target_queue_ms, target_kv, idle),
        semantic=semantic_options.semantic_of(
            semantic,
            semantic_encoder,
            allowed_false_hit_rate,
            semantic_confidence,
            semantic_verify,
            semantic_loose,
        ),
        canary=canary,
        canary_s=canary_s,
        plan=plan,
        auto_recut=auto_recut,
        node_labels=labels_of(label),
        pins=[parse_pin(text) for text in pin or ()],
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
    weight: Annotated[
        float, typer.Option(help="Its part of what models share at a router, beside others.", min=0)
    ] = 0.0,
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
    if replicas is None and policy is None and not scales_itself and not weight:
        raise typer.BadParameter(
            "say how many REPLICAS, limits like --min and --max, which --policy, or a --weight"
        )
    if replicas is not None and scales_itself:
        raise typer.BadParameter("either a fixed number of REPLICAS, or limits like --min and --max")

    async def run() -> registry_pb2.ModelSpec:
        before = await deployment.scaling(registry, name) if scales_itself else None
        spec = await deployment.scale(
            registry, name, replicas or 0, stage, policy, scaling_of(*limits, before), weight
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
