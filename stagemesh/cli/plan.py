"""`plan`: where to cut a model for given nodes, which node runs which part, and why. Changes nothing."""

from pathlib import Path
from typing import Annotated

import typer

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json


@one_line_errors
def plan(
    model: Annotated[str, typer.Argument(help="Local folder or hub id.", show_default=False)],
    nodes: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with nodes, links and pins; without, the nodes of a running mesh.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="throughput, or latency (of one token).", metavar="WHAT")
    ] = "throughput",
    latency_ms: Annotated[
        float, typer.Option(help="With throughput: milliseconds a token may take; 0: no limit.", min=0)
    ] = 0.0,
    tokens_per_s: Annotated[
        float, typer.Option(help="With latency: tokens per second needed; 0: any.", min=0)
    ] = 0.0,
    batch: Annotated[int, typer.Option(help="Sessions that decode together.", min=1, max=4096)] = 8,
    stages: Annotated[int, typer.Option(help="Exactly so many; 0: the best number.", min=0)] = 0,
    headroom: Annotated[
        float, typer.Option(help="Memory for each byte of parameters: KV, activations.", min=1.0, max=100.0)
    ] = 1.2,
    zone: Annotated[list[str] | None, typer.Option(help="Only nodes of this zone; again for more.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only nodes with this label, KEY=VALUE; again for more.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="F32, BF16 or F16; the checkpoint's own when not given.")] = "",
    revision: Annotated[str, typer.Option(help="Hub revision.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and what would help.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--svg", help="Draw the plan into this file.", show_default=False)
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Plan where to cut MODEL and which node runs which part."""
    # Imported here: no other command needs a planner.
    from stagemesh.cli import plan_run

    plan_run.run(
        plan_run.Wanted(
            model=model,
            nodes=nodes,
            objective=objective,
            latency_ms=latency_ms,
            tokens_per_s=tokens_per_s,
            batch=batch,
            stages=stages,
            headroom=headroom,
            zones=tuple(zone or ()),
            labels=tuple(label or ()),
            dtype=dtype,
            revision=revision,
            explain=explain,
            picture=picture,
            address=address,
            api_key=api_key,
            as_json=as_json,
        )
    )
