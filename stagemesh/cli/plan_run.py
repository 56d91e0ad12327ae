"""Plans, and shows the result, for `stagemesh plan`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

from stagemesh import checkpoint as checkpoints
from stagemesh.cli.options import labels_of
from stagemesh.cli.plan_table import show
from stagemesh.client import Client
from stagemesh.errors import InvalidArgument, NotFound
from stagemesh.planning import Goal, Links, ModelShape, Node
from stagemesh.planning.explain import explain as explain_plan
from stagemesh.planning.live import from_records, links_from, taken_bytes
from stagemesh.planning.nodes_file import NodesFile, read_nodes
from stagemesh.planning.picture import svg
from stagemesh.planning.plan import make_plan
from stagemesh.planning.profile import shape_of

_DTYPES = ("", "F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class Wanted:
    """The command's options."""

    model: str
    nodes: Path | None
    objective: str
    latency_ms: float
    tokens_per_s: float
    batch: int
    stages: int
    headroom: float
    zones: tuple[str, ...]
    labels: tuple[str, ...]
    dtype: str
    revision: str
    explain: bool
    picture: Path | None
    address: str
    api_key: str
    as_json: bool


def run(wanted: Wanted) -> None:
    """Plan and print.

    Raises:
        InvalidArgument: naming the option or the field of the nodes file.
        NotFound: no checkpoint, no file, or no nodes.
        FailedPrecondition: there is no plan.
    """
    if wanted.objective not in ("throughput", "latency"):
        raise InvalidArgument("--objective: must be throughput or latency", field="objective")
    if wanted.dtype not in _DTYPES:
        raise InvalidArgument(f"--dtype: must be one of {', '.join(_DTYPES[1:])}", field="dtype")
    given = None if wanted.nodes is None else _read(wanted.nodes)
    found = checkpoints.inspect_source(wanted.model, wanted.revision)
    members, links = (
        (given.nodes, given.links)
        if given
        else _live(wanted.address, wanted.api_key, shape_of(found, wanted.dtype))
    )
    if wanted.stages > len(found.cuts) + 1:
        raise InvalidArgument(
            f"--stages: the model's {found.layers} layers can be cut into {len(found.cuts) + 1} at most",
            field="stages",
        )
    kind: Literal["throughput", "latency"] = "latency" if wanted.objective == "latency" else "throughput"
    goal = Goal(
        objective=kind,
        latency_ms=wanted.latency_ms,
        tokens_per_s=wanted.tokens_per_s,
        batch=wanted.batch,
        stages=wanted.stages,
        headroom=wanted.headroom,
        zones=wanted.zones,
        labels=labels_of(wanted.labels),
        pins=given.pins(found.layers) if given else (),
    )
    shape = ModelShape.of(found, Path(wanted.model).name or wanted.model, wanted.dtype)
    made = make_plan(shape, members, links, goal)
    reasons = explain_plan(made) if wanted.explain else None
    if wanted.picture is not None:
        wanted.picture.write_text(svg(made), encoding="utf-8")
    if wanted.as_json:
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
        mesh = client.status()
    seen = mesh.nodes
    replicas = [item.record for item in mesh.replicas]
    taken = taken_bytes(replicas, [item.spec for item in mesh.models], seen)
    members, left_out = from_records(seen, shape, taken)
    for line in left_out:
        typer.echo(f"stagemesh: left out {line}", err=True)
    if not members:
        raise NotFound(
            "no node of the mesh can be planned with; describe some with --nodes FILE", field="nodes"
        )
    return members, links_from(seen)
