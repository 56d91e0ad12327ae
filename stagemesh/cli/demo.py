"""`demo`: a mesh of 2 stages x 2 replicas on this machine, a few completions, and a clean end."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import stagemesh
from stagemesh.cli.generate import route_words
from stagemesh.cli.guard import fail, one_line_errors
from stagemesh.cli.progress import Progress
from stagemesh.cli.serve import check_programs, check_source
from stagemesh.cli.signals import run_until_signal
from stagemesh.client import AsyncClient, Generation
from stagemesh.errors import ConfigError
from stagemesh.local import LocalMesh
from stagemesh.local.etcd_server import etcd_binary
from stagemesh.local.leftovers import Leftovers
from stagemesh.local.ports import free_port, is_free

_MODEL = Path("examples/demo_model/model")
_PROMPTS = ("def read_file(path):", "class Stack:", "def parse_args(argv):", "    try:\n        import ssl")
_TOKENS = 64


@one_line_errors
def demo(
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder.", show_default=False)] = None,
    stages: Annotated[int, typer.Option(help="Partitions.", min=1)] = 2,
    replicas: Annotated[int, typer.Option(help="Replicas of each stage.", min=1)] = 2,
    http_port: Annotated[int, typer.Option(help="HTTP port; a free one when taken.", min=0)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; a free one when taken.", min=0)] = 8001,
    max_tokens: Annotated[int, typer.Option(help="New tokens per completion.", min=1)] = _TOKENS,
) -> None:
    """Start a mesh, stream a few completions, show a cache hit, and stop everything."""
    source = model or find_model()
    etcd_binary()
    check_programs()
    check_source(str(source))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    http, grpc = _port("HTTP", http_port, console), _port("gRPC", grpc_port, console)
    leftovers = Leftovers.before()

    async def run() -> None:
        async with Progress(console) as progress:
            mesh = LocalMesh(
                stages=stages, replicas=replicas, http_port=http, grpc_port=grpc, progress=progress
            )
            async with mesh:
                spec = await mesh.deploy(source, "demo")
                progress.idle()
                _show_replicas(console, mesh, spec.architecture)
                async with mesh.client() as client:
                    for prompt in (*_PROMPTS, _PROMPTS[0]):
                        await _complete(console, client, spec.name, prompt, max_tokens)
                progress.busy("stopping")

    if run_until_signal(run()) is not None:
        raise typer.Exit(130)
    left = leftovers.found()
    if left:
        fail("left behind: " + ", ".join(left))
    console.print("stopped: no process, port or temp folder is left")
    _show_how_to(console, source)


def find_model() -> Path:
    """The demo model below the current folder or the repository; raises `ConfigError` when it is in neither."""
    for root in (Path.cwd(), Path(stagemesh.__file__).resolve().parent.parent):
        if (root / _MODEL / "config.json").is_file():
            return root / _MODEL
    raise ConfigError(f"no demo model at {_MODEL}: run this from a clone, or pass --model FOLDER")


def _port(use: str, wanted: int, console: Console) -> int:
    if wanted and is_free(wanted):
        return wanted
    port = free_port()
    if wanted:
        console.print(f"{use} port {wanted} is taken, using {port}")
    return port


def _show_replicas(console: Console, mesh: LocalMesh, architecture: str) -> None:
    pids = ", ".join(str(process.pid) for process in mesh.stage_processes)
    console.print(
        f"\n{architecture} in {mesh.stages} stages x {mesh.replicas} replicas; stage processes {pids}"
    )


async def _complete(
    console: Console, client: AsyncClient, model: str, prompt: str, max_tokens: int
) -> Generation:
    console.rule(style="dim")
    console.print(prompt, style="bold", end="")
    async with client.stream(model, prompt, max_tokens=max_tokens, temperature=0) as stream:
        async for chunk in stream:
            console.print(chunk.text, end="")
        generation = await stream.generation()
    console.print()
    console.print(f"  route     {route_words(generation)}", style="dim")
    console.print(
        f"  speed     {generation.tokens_per_second:.1f} tokens/s "
        f"({generation.usage.completion_tokens} tokens in {generation.duration_s:.2f} s, "
        f"the first after {generation.first_token_s:.2f} s)",
        style="dim",
    )
    console.print(f"  cache     {generation.cache or 'unknown'}", style="dim")
    return generation


def _show_how_to(console: Console, source: Path) -> None:
    console.print(
        f"""
Leave it running:

  make serve      (or: stagemesh serve {_short(source)} --name demo --stages 2 --replicas 2)

and ask it from another terminal:

  curl -N http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo", "prompt": "def read_file(path):", "max_tokens": 64, "stream": true}}'

  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo", "messages": [{{"role": "user", "content": "class Stack:"}}], "max_tokens": 64}}'

or from Python:

  from stagemesh import Client

  with Client("127.0.0.1:8001") as client:
      for chunk in client.stream("demo", "def read_file(path):", max_tokens=64, temperature=0):
          print(chunk.text, end="", flush=True)
"""
    )


def _short(folder: Path) -> str:
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
