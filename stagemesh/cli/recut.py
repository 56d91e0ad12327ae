"""`recut`: other cuts of a deployed model, where that pays by what its nodes measure."""

import asyncio
import json
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY, Json, Registry
from stagemesh.cli.progress import Progress
from stagemesh.local import deployment
from stagemesh.v1 import registry_pb2


@one_line_errors
def recut(
    name: Annotated[str, typer.Argument(help="Name of the deployed model.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move although it does not pay.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and what would help.")] = False,
    registry: Registry = DEFAULT_REGISTRY,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the move is over.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0.001)] = 600.0,
    as_json: Json = False,
) -> None:
    """Plan a deployed model's cuts anew from what its nodes measure, and move them where that pays.

    New partitions are started beside the old ones, new sessions go there when they are ready, and the old ones go when their
    last session has ended. `deploy --plan ... --auto-recut` has this done by itself.
    """

    async def run() -> registry_pb2.RecutResponse:
        answer = await deployment.recut(registry, name, dry_run=dry_run, force=force)
        if answer.begun and wait:
            spec = await deployment.model(registry, name)
            async with Progress(Console(stderr=True)) as progress:
                revision = deployment.wanted_revision(spec)
                await deployment.wait_in_registry(registry, name, progress, timeout, revision)
        return answer

    answer = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(json_format.MessageToDict(answer, preserving_proto_field_name=True)))
        return
    done = "moved" if answer.begun and wait else "moving" if answer.begun else "not moved"
    typer.echo(f"{name}: {done}; {answer.reason}")
    for line in answer.plan.why if explain else ():
        typer.echo(f"  {line}")
