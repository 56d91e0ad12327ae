"""`events`: what the control plane decided, and why."""

import asyncio
import json
from datetime import datetime
from typing import Annotated

import grpc
import typer
from google.protobuf import json_format

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_REGISTRY, Json, Registry
from stagemesh.client.wire import translate
from stagemesh.grpc_server import create_channel
from stagemesh.v1.registry_pb2 import EventRecord, EventsRequest
from stagemesh.v1.registry_pb2_grpc import RegistryServiceStub

_READ_S = 15.0


@one_line_errors
def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, and show what comes, until Ctrl-C.")
    ] = False,
    model: Annotated[str, typer.Option(help="Only of this model.", show_default=False)] = "",
    kind: Annotated[
        str, typer.Option(help='Only kinds that begin so, "scale." or "rollout." say.', show_default=False)
    ] = "",
    since: Annotated[
        float | None, typer.Option(help="Only of the last so many seconds.", min=0, show_default=False)
    ] = None,
    registry: Registry = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """What the registry decided in the last hour and why: scaling, packing, rollouts, re-cuts, who leads.

    One line each, the oldest first; with --json one JSON object a line, with the numbers that were decided on by name.
    """
    request = EventsRequest(model=model, kind=kind, follow=follow)
    if since is not None:
        request.since_unix_ms = int(datetime.now().timestamp() * 1000 - since * 1000)
    try:
        asyncio.run(_show(registry, request, as_json))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _show(registry: str, request: EventsRequest, as_json: bool) -> None:
    async with create_channel(registry) as channel:
        try:
            timeout_s = None if request.follow else _READ_S
            async for record in RegistryServiceStub(channel).Events(request, timeout=timeout_s):
                typer.echo(_json(record) if as_json else _line(record))
        except grpc.aio.AioRpcError as error:
            raise translate(error, registry) from None


def _json(record: EventRecord) -> str:
    found = json_format.MessageToDict(
        record, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(found | {"unix_ms": record.unix_ms})


def _line(record: EventRecord) -> str:
    at = datetime.fromtimestamp(record.unix_ms / 1000).strftime("%H:%M:%S")
    return f"{at}  {record.kind:<16}  {record.model or '-'}: {record.reason}"
