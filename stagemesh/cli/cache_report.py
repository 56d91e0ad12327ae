"""`cache report` and `cache semantic`: what the caches spare, how often they are wrong, and turning that off and on."""

import asyncio
import json
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from stagemesh.cli.cache import Caches, Seconds, app, ask_all
from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json
from stagemesh.errors import InvalidArgument, NotFound, StagemeshError
from stagemesh.v1 import semantic_pb2
from stagemesh.v1.semantic_pb2_grpc import SemanticServiceStub

COMMANDS = ("stats", "invalidate", "report", "semantic")
"""Words after `stagemesh cache` that are commands; any other runs a cache."""
_ORDERS = {
    "off": semantic_pb2.SEMANTIC_ORDER_OFF,
    "on": semantic_pb2.SEMANTIC_ORDER_ON,
    "reset": semantic_pb2.SEMANTIC_ORDER_RESET,
}
Found = list[tuple[str, Any]]


@app.command("report")
@one_line_errors
def report(
    model: Annotated[str, typer.Argument(help="A model, or all.", metavar="MODEL|all")] = "all",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    caches: Caches = "",
    timeout: Seconds = 10.0,
    as_json: Json = False,
) -> None:
    """Hit rate, verified false-hit rate with its interval, what was saved, and the state of the semantic layer.

    "learning": nothing is served by meaning yet; what is computed anyway is compared with what would have been served.
    "serving": the bands of similarity marked so are known well enough. "off (alarm)": verified errors were past the
    allowed rate; it learns anew and comes back by itself, or by `stagemesh cache semantic MODEL on`.
    """
    request = semantic_pb2.CacheReportRequest(model="" if model == "all" else model)
    found = _ask(address, api_key, caches, timeout, lambda stub: stub.Report(request, timeout=timeout))
    models = [
        (where, each) for where, what in found if not isinstance(what, StagemeshError) for each in what.models
    ]
    missed = {where: what.message for where, what in found if isinstance(what, StagemeshError)}
    if as_json:
        documents = [{"cache": where, **_document(each)} for where, each in models]
        typer.echo(json.dumps({"models": documents, "not_reached": missed}))
    else:
        for _, each in models:
            _show(each)
        for where, why in missed.items():
            typer.echo(f"stagemesh: {where} does not answer: {why}", err=True)
    if missed and not models:
        raise typer.Exit(1)
    if not models and model != "all":
        raise NotFound(f"no cache has heard of a model {model!r} yet", field="model")


@app.command("semantic")
@one_line_errors
def semantic(
    model: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    order: Annotated[
        str, typer.Argument(help="off, on, or reset.", metavar="off|on|reset", show_default=False)
    ],
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    caches: Caches = "",
    timeout: Seconds = 10.0,
    as_json: Json = False,
) -> None:
    """Turn answers by meaning off or on, or forget what was learned of their errors.

    Off, it goes on learning and serves nothing. On lifts an order or an alarm; after an alarm there is no evidence left, so
    it learns before it serves. Reset forgets the evidence.
    """
    if order not in _ORDERS:
        raise InvalidArgument(f"order: off, on or reset, not {order[:20]!r}", field="order")
    request = semantic_pb2.SemanticSwitchRequest(model=model, order=_ORDERS[order])
    found = _ask(address, api_key, caches, timeout, lambda stub: stub.Switch(request, timeout=timeout))
    scopes = sum(what.scopes for _, what in found if not isinstance(what, StagemeshError))
    if not scopes:
        raise NotFound(f"no cache has learned anything of a model {model!r} yet", field="model")
    if as_json:
        typer.echo(json.dumps({"model": model, "order": order, "scopes": scopes}))
    else:
        typer.echo(f"{model}: semantic answers {order}")


def _ask(address: str, api_key: str, caches: str, timeout: float, ask: Any) -> Found:
    return asyncio.run(ask_all(address, api_key, caches, timeout, ask, SemanticServiceStub))


def _document(each: semantic_pb2.ModelCacheReport) -> dict[str, Any]:
    document: dict[str, Any] = json_format.MessageToDict(
        each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    document["usage"] = {
        name: value if name == "model" else int(value) for name, value in document["usage"].items()
    }
    for part in [document.get("semantic"), *document.get("semantic", {}).get("bands", ())]:
        for name, value in (part or {}).items():
            if isinstance(value, str) and value.isdecimal():  # 64 bits wide
                part[name] = int(value)
    usage = each.usage
    hits = usage.exact_hits + usage.semantic_hits
    document["overall_hit_rate"] = round(hits / usage.lookups, 6) if usage.lookups else None
    return document


def _show(each: semantic_pb2.ModelCacheReport) -> None:
    usage, found = each.usage, each.semantic
    hits = usage.exact_hits + usage.semantic_hits
    rate = f"{hits / usage.lookups:.1%}" if usage.lookups else "-"
    typer.echo(f"{usage.model or found.scope.model}")
    typer.echo(
        f"  hits      {hits} of {usage.lookups} ({rate}): {usage.exact_hits} exact, {usage.semantic_hits} semantic"
        + (", DRIFTED within the hour" if each.hit_rate_drifted else "")
    )
    typer.echo(
        f"  saved     {usage.tokens_saved} tokens, {usage.compute_ms_saved / 1000:.1f} s of computing, "
        f"{usage.bytes_served} bytes served"
    )
    if not each.HasField("semantic"):
        typer.echo("  semantic  not in use")
        return
    typer.echo(f"  semantic  {found.state}{': ' if found.reason else ''}{found.reason}")
    verified = f"{found.false_hits / found.verified:.2%}" if found.verified else "unknown"
    typer.echo(
        f"  false     {verified} of {found.verified} verified hits, {found.false_hit_rate_low:.2%} to "
        f"{found.false_hit_rate_high:.2%} with {found.confidence:.0%}; allowed {found.allowed_false_hit_rate:.2%}; "
        f"{found.alarms} alarms"
    )
    typer.echo(
        f"  kept      {found.entries} questions, {found.bytes / 2**20:.1f} MiB; {found.served} served of {found.finds} looked for"
    )
    if not found.bands:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("  PAIRS", "SIMILARITY", "SAMPLES", "WRONG", "AT MOST", ""):
        table.add_column(column)
    for band in found.bands:
        table.add_row(
            f"  {band.kind}",
            f"{band.from_similarity:.2f}-{band.to_similarity:.2f}",
            str(band.samples),
            str(band.false_samples),
            f"{band.bound:.2%}",
            "serves" if band.serves else "",
        )
    Console(highlight=False, markup=False).print(table)
