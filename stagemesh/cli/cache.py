"""`cache stats` and `cache invalidate` (others in `cache_report`): every cache of the mesh, found through a router or named. Other words run one."""

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import grpc
import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from stagemesh.cli.guard import fail, one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json
from stagemesh.client import AsyncClient
from stagemesh.errors import InvalidArgument, NotFound, StagemeshError
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2
from stagemesh.v1.cache_pb2_grpc import CacheServiceStub

T = TypeVar("T")
Caches = Annotated[
    str,
    typer.Option("--cache", help="Caches to ask, instead of those the router knows.", metavar="H:P[,H:P...]"),
]
Seconds = Annotated[float, typer.Option("--timeout", help="Seconds that each cache may take.", min=0.001)]

app = typer.Typer(
    help="The caches of a mesh. Any other word or flag runs a cache: `stagemesh cache --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_ADDRESS = re.compile(r"\S+:\d{1,5}")


@app.command("stats")
@one_line_errors
def stats(
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    caches: Caches = "",
    timeout: Seconds = 10.0,
    as_json: Json = False,
) -> None:
    """What each cache holds, and what became of lookups since it started."""
    request = cache_pb2.CacheStatsRequest()
    found = asyncio.run(
        ask_all(address, api_key, caches, timeout, lambda stub: stub.GetStats(request, timeout=timeout))
    )
    if as_json:
        typer.echo(json.dumps({"caches": [{"address": each, **_stats(what)} for each, what in found]}))
    else:
        _show(found)
    if all(isinstance(what, StagemeshError) for _, what in found):
        raise typer.Exit(1)


@app.command("invalidate")
@one_line_errors
def invalidate(
    model: Annotated[str, typer.Option(help="Answers of this model.")] = "",
    revision: Annotated[str, typer.Option(help="Answers of this revision.")] = "",
    namespace: Annotated[str, typer.Option(help="Answers in this namespace.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Answers with this tag of the caller's.")] = None,
    prefix: Annotated[
        str, typer.Option(help="Answers with a tag that begins so, for instance namespace:team/ or tag:doc-.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Answers of this tenant.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every answer.")] = False,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    caches: Caches = "",
    timeout: Seconds = 10.0,
    as_json: Json = False,
) -> None:
    """Drop the answers that fit all that is given, on every cache; one that is down does so before it answers again."""
    given = {"model": model, "revision": revision, "namespace": namespace}
    tags = [f"{kind}:{name}" for kind, name in given.items() if name]
    tags += [f"tag:{each}" for each in tag or ()]
    if everything == bool(tags or prefix or tenant):
        raise InvalidArgument("say what to drop, or --all for everything, and not both", field="all")
    request = cache_pb2.CacheInvalidateRequest(tenant=tenant, tags=tags, prefix=prefix, id=uuid.uuid4().hex)
    found = asyncio.run(
        ask_all(address, api_key, caches, timeout, lambda stub: stub.Invalidate(request, timeout=timeout))
    )
    answers = [what for _, what in found if not isinstance(what, StagemeshError)]
    entries, announced = sum(each.entries for each in answers), any(each.announced for each in answers)
    missed = [each for each, what in found if isinstance(what, StagemeshError)]
    if as_json:
        document = {"id": request.id, "entries": entries, "announced": announced, "not_reached": missed}
        typer.echo(json.dumps(document | {"reached": len(answers)}))
    else:
        typer.echo(f"{entries} entries dropped on {len(answers)} caches")
    if not announced:
        fail(
            f"not announced to the mesh: {', '.join(missed) or 'a cache that is down'} may still answer from before"
        )
    if missed:
        typer.echo(f"stagemesh: not reached: {', '.join(missed)}; told through etcd", err=True)


async def ask_all(
    address: str,
    api_key: str,
    caches: str,
    timeout_s: float,
    ask: Callable[[Any], Awaitable[T]],
    service: Callable[[Any], Any] = CacheServiceStub,
) -> list[tuple[str, T | StagemeshError]]:
    """What each cache says, or why it does not; raises `NotFound` when there is none."""
    if caches:
        addresses = [each.strip() for each in caches.split(",") if each.strip()]
        for each in addresses:
            if not _ADDRESS.fullmatch(each):
                raise InvalidArgument(f"--cache: {each[:80]!r} is not host:port", field="cache")
    else:
        async with AsyncClient(address, api_key=api_key or None, timeout_s=timeout_s) as client:
            mesh = await client.status()
        addresses = [each.address for each in mesh.services if each.kind == "cache"]
    if not addresses:
        raise NotFound("the router knows of no cache", field="cache")

    async def one(cache: str) -> T | StagemeshError:
        async with create_channel(cache) as channel:
            try:
                return await ask(service(channel))
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)

    answers = await asyncio.gather(*(one(each) for each in addresses))
    return list(zip(addresses, answers, strict=True))


def _stats(what: cache_pb2.CacheStats | StagemeshError) -> dict[str, Any]:
    if isinstance(what, StagemeshError):
        return {"error": what.message}
    document: dict[str, Any] = json_format.MessageToDict(
        what, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Counts are 64 bits wide, which this JSON spells as texts.
    found = {name: value if name == "behind" else int(value) for name, value in document.items()}
    return found | {"hit_rate": None if (rate := _hit_rate(what)) is None else round(rate, 6)}


def _hit_rate(what: cache_pb2.CacheStats) -> float | None:
    """Of all that was asked, at the cache or at a router that has a copy; None when nothing was."""
    hits = what.hits + what.near_hits
    return hits / (hits + what.misses) if hits + what.misses else None


def _show(found: list[tuple[str, cache_pb2.CacheStats | StagemeshError]]) -> None:
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in (
        "CACHE",
        "ENTRIES",
        "MIB",
        "HITS",
        "AT ROUTERS",
        "MISSES",
        "RATE",
        "COMPUTED",
        "COALESCED",
        "TAKEN OVER",
        "BEHIND",
    ):
        table.add_column(column, overflow="fold", no_wrap=column == "CACHE")
    for address, what in found:
        if isinstance(what, StagemeshError):
            table.add_row(address, f"does not answer: {what.message}")
            continue
        used = f"{what.bytes_used / 2**20:.1f}/{what.bytes_budget / 2**20:.0f}"
        rate = "-" if (share := _hit_rate(what)) is None else f"{share:.1%}"
        counts = (
            what.hits,
            what.near_hits,
            what.misses,
            rate,
            what.computed,
            what.coalesced,
            what.taken_over,
        )
        table.add_row(address, str(what.entries), used, *map(str, counts), what.behind)
    console.print(table)
