"""`rollout`: how an update or a change of cuts goes, and what an operator decides about it."""

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY, Json, Registry
from stagemesh.cli.progress import Progress
from stagemesh.local import deployment
from stagemesh.local.readiness import rollout_line, short_revision
from stagemesh.v1 import registry_pb2

app = typer.Typer(
    help="A candidate beside a deployed model: another revision, or other cuts of the same weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Name of the deployed model.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the rollout is over.")]
WaitTimeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0.001)]


@app.command("status")
@one_line_errors
def status(name: Name, registry: Registry = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """Tell the state of the model's rollout, or how the last one ended, and why."""
    _print(asyncio.run(deployment.model(registry, name)), as_json)


@app.command("promote")
@one_line_errors
def promote(
    name: Name,
    registry: Registry = DEFAULT_REGISTRY,
    wait: Wait = True,
    timeout: WaitTimeout = 600.0,
    as_json: Json = False,
) -> None:
    """Send every new session to the candidate now, without further watching; sessions under way end where they are."""
    action = registry_pb2.ROLLOUT_ACTION_PROMOTE
    _print(asyncio.run(_act(registry, name, action, wait, timeout)), as_json)


@app.command("abort")
@one_line_errors
def abort(
    name: Name,
    registry: Registry = DEFAULT_REGISTRY,
    wait: Wait = True,
    timeout: WaitTimeout = 600.0,
    as_json: Json = False,
) -> None:
    """Take the candidate back: new sessions go to what was deployed, and those on the candidate come to their end."""
    action = registry_pb2.ROLLOUT_ACTION_ABORT
    _print(asyncio.run(_act(registry, name, action, wait, timeout)), as_json)


def as_dict(spec: registry_pb2.ModelSpec) -> dict[str, Any]:
    """For --json; times are Unix milliseconds, `state` is "none" when there never was a rollout."""
    rollout = spec.rollout
    state = registry_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_").lower()
    return {
        "model": spec.name,
        "revision": spec.revision,
        "state": "none" if state == "unspecified" else state,
        "kind": rollout.kind,
        "share": round(rollout.share, 4),
        "steps": [round(step, 4) for step in rollout.steps],
        "step": rollout.step,
        "hold_s": rollout.hold_s,
        "reason": rollout.reason,
        "from_revision": rollout.from_revision,
        "to_revision": rollout.to_revision,
        "started_unix_ms": rollout.started_unix_ms,
        "step_unix_ms": rollout.step_unix_ms,
    }


async def _act(
    registry: str, name: str, action: registry_pb2.RolloutAction, wait: bool, timeout_s: float
) -> registry_pb2.ModelSpec:
    spec = await deployment.rollout(registry, name, action)
    if not wait:
        return spec
    kept = action == registry_pb2.ROLLOUT_ACTION_ABORT
    async with Progress(Console(stderr=True)) as progress:
        revision = spec.revision if kept else deployment.wanted_revision(spec)
        await deployment.wait_in_registry(registry, name, progress, timeout_s, revision)
    return await deployment.model(registry, name)


def _print(spec: registry_pb2.ModelSpec, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(as_dict(spec)))
        return
    line = rollout_line(spec)
    typer.echo(f"{spec.name}: {line or f'revision {short_revision(spec.revision)}, no rollout'}")
