"""`bench`: where a token's time goes in a mesh, and what the pipeline model says about it."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stagemesh.cli.bench_report import Report, as_dict, show
from stagemesh.cli.bench_run import Runner, find_model
from stagemesh.cli.guard import fail, one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, ApiKey, Json, Timeout
from stagemesh.cli.progress import Progress
from stagemesh.cli.serve import check_programs, check_source
from stagemesh.cli.signals import run_until_signal
from stagemesh.client import AsyncClient
from stagemesh.local import LocalMesh
from stagemesh.local.etcd_server import etcd_binary
from stagemesh.local.leftovers import Leftovers

_MOST_STREAMS = 1024

EXAMPLES = f"""\b
Examples:
  stagemesh bench                              the only model behind {DEFAULT_ADDRESS}
  stagemesh bench demo --streams 1,4,16 --address 10.0.0.1:8001
  stagemesh bench examples/demo_model/model    starts a mesh for it, and stops it
"""


@one_line_errors
def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a deployed model (not needed when only one is), or a folder with a checkpoint.",
            show_default=False,
        ),
    ] = "",
    address: Annotated[
        str,
        typer.Option(
            "--address",
            "--router",
            envvar="STAGEMESH_ADDRESS",
            help=f"Router's gRPC host:port; {DEFAULT_ADDRESS} unless MODEL is a folder.",
            metavar="H:P",
            show_default=False,
        ),
    ] = "",
    streams: Annotated[
        str, typer.Option(help="How many generations at once; several, by commas, for a fitted model.")
    ] = "1,8",
    prompt_tokens: Annotated[int, typer.Option(help="Length of each (random) prompt.", min=1)] = 64,
    tokens: Annotated[int, typer.Option(help="New tokens of each stream.", min=2)] = 64,
    rounds: Annotated[
        int, typer.Option(help="How often; a round that warms up comes before.", min=1, max=100)
    ] = 3,
    stages: Annotated[int, typer.Option(help="With a folder: partitions.", min=1)] = 2,
    replicas: Annotated[int, typer.Option(help="With a folder: replicas of each stage.", min=1)] = 1,
    threads: Annotated[
        int, typer.Option(help="With a folder: threads per stage; 0: cores shared out.", min=0)
    ] = 0,
    dtype: Annotated[str, typer.Option(help="With a folder: F32, BF16 or F16; else the checkpoint's.")] = "",
    device: Annotated[str, typer.Option(help="With a folder: auto, cpu, cuda, cuda:0 ...")] = "auto",
    api_key: ApiKey = "",
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Show where a token's time goes, and the pipeline model's prediction beside it.

    Runs greedy generations of random tokens through a running mesh, some at once, and prints tokens per second, the
    time to the first token and between tokens. Then, per stage, what the time between two tokens is made of: waiting
    for the compute thread (queue), computing, making frames (encode), the way from the stage before (network); with
    the line below the stages these add up. IDLE is how long the stage had nothing to compute meanwhile (its
    bubbles). Last comes what an analytic model of the pipeline predicts, how far it is off, which stage is the
    limit, and what would help.

    Other traffic at the same time counts into what is seen. Exits with 1 and a line on standard error when something
    fails, with 130 on Ctrl-C.
    """
    counts = _counts(streams)
    out = Console(highlight=False, markup=False)
    # A folder is benched on a mesh of its own, unless it is said where to go.
    own = not address and bool(model) and (os.sep in model or Path(model).is_dir())
    if own:
        etcd_binary()
        check_programs()
        check_source(model)
    found: list[Report] = []

    async def measure(client: AsyncClient, name: str, progress: Progress) -> None:
        spec = await find_model(client, name)
        runner = Runner(client, spec, prompt_tokens, tokens, timeout, progress)
        loads = tuple(await runner.loads(counts, rounds))
        found.append(Report(spec.name, spec.architecture, prompt_tokens, tokens, rounds, loads))

    async def run() -> None:
        async with Progress(Console(stderr=True)) as progress:
            if not own:
                async with AsyncClient(
                    address or DEFAULT_ADDRESS, api_key=api_key or None, timeout_s=timeout
                ) as client:
                    await measure(client, model, progress)
                return
            mesh = LocalMesh(
                stages=stages,
                replicas=replicas,
                http_port=0,
                grpc_port=0,
                threads=threads or None,
                device=device,
                progress=progress,
            )
            try:
                async with mesh:
                    spec = await mesh.deploy(model, dtype=dtype, cache=False)
                    async with mesh.client() as client:
                        await measure(client, spec.name, progress)
                    progress("stopping")
            finally:
                progress("stopped")

    leftovers = Leftovers.before()
    if run_until_signal(run()) is not None:
        raise typer.Exit(130)
    if own and (left := leftovers.found()):
        fail("left behind: " + ", ".join(left))
    (report,) = found
    if as_json:
        typer.echo(json.dumps(as_dict(report)))
    else:
        show(report, out)


def _counts(text: str) -> list[int]:
    """Numbers of streams, ascending, each once."""
    try:
        counts = sorted({int(item) for item in text.split(",")})
    except ValueError:
        counts = []
    if not counts or not 1 <= counts[0] <= counts[-1] <= _MOST_STREAMS:
        raise typer.BadParameter(
            f"whole numbers between 1 and {_MOST_STREAMS}, by commas, such as 1,8", param_hint="--streams"
        )
    return counts
