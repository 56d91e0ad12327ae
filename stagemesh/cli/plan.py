"""`plan`: where to cut a model for given nodes, which node runs which part, and why. Changes nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from stagemesh import checkpoint as checkpoints
from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json
from stagemesh.cli.plan_table import show
from stagemesh.client import Client
from stagemesh.errors import InvalidArgument, NotFound
from stagemesh.planning import Goal, Links, ModelShape, Node
from stagemesh.planning.explain import explain as explain_plan
from stagemesh.planning.live import from_records, links_from
from stagemesh.planning.nodes_file import NodesFile, read_nodes
from stagemesh.planning.picture import svg
from stagemesh.planning.plan import make_plan
from stagemesh.planning.profile import shape_of

_DTYPES = ("", "F32", "BF16", "F16", "F64")


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
    if objective not in ("throughput", "latency"):
        raise InvalidArgument("--objective: must be throughput or latency", field="objective")
    if dtype not in _DTYPES:
        raise InvalidArgument(f"--dtype: must be one of {', '.join(_DTYPES[1:])}", field="dtype")
    given = None if nodes is None else _read(nodes)
    found = checkpoints.inspect_source(model, revision)
    members, links = (given.nodes, given.links) if given else _live(address, api_key, shape_of(found, dtype))
    if stages > len(found.cuts) + 1:
        raise InvalidArgument(
            f"--stages: the model's {found.layers} layers can be cut into {len(found.cuts) + 1} at most",
            field="stages",
        )
    kind: Literal["throughput", "latency"] = "latency" if objective == "latency" else "throughput"
    goal = Goal(
        objective=kind,
        latency_ms=latency_ms,
        tokens_per_s=tokens_per_s,
        batch=batch,
        stages=stages,
        headroom=headroom,
        zones=tuple(zone or ()),
        labels=_labels(label or []),
        pins=given.pins(found.layers) if given else (),
    )
    shape = ModelShape.of(found, Path(model).name or model, dtype)
    made = make_plan(shape, members, links, goal)
    reasons = explain_plan(made) if explain else None
    if picture is not None:
        picture.write_text(svg(made), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({**made.as_dict(), **({"explanation": vars(reasons)} if reasons else {})}))
        return
    show(Console(soft_wrap=True), made)
    if reasons is not None:
        typer.echo("")
        for line in reasons.lines():
            typer.echo(line)


def _read(file: Path) -> NodesFile:
    try:
        return read_nodes(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise NotFound(f"--nodes: {str(file)!r} is no file that can be read", field="nodes") from None


def _live(address: str, api_key: str, shape: str) -> tuple[Sequence[Node], Links]:
    """Nodes that the router sees, and their links; those that cannot be planned with are named on stderr."""
    with Client(address, api_key=api_key or None) as client:
        seen = client.status().nodes
    members, left_out = from_records(seen, shape)
    for line in left_out:
        typer.echo(f"stagemesh: left out {line}", err=True)
    if not members:
        raise NotFound(
            "no node of the mesh can be planned with; describe some with --nodes FILE", field="nodes"
        )
    return members, links_from(seen)


def _labels(words: list[str]) -> dict[str, str]:
    wrong = [word for word in words if "=" not in word or word.startswith("=")]
    if wrong:
        raise InvalidArgument(f"--label: {wrong[0]!r} is not KEY=VALUE", field="label")
    return dict(word.split("=", 1) for word in words)
