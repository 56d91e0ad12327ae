"""`infer`: named tensors from files through a model, or texts to embeddings."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from stagemesh.cli.generate import only_model
from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.infer_files import Arrays, read_inputs
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, CacheControl, Json, Timeout
from stagemesh.client import Client, RouteHop
from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import ModelSpec


@one_line_errors
def infer(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Inputs: .npz, JSON {name: nested lists}, or .npy of the only input.", show_default=False
        ),
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="One input from an .npy; may be repeated."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to embed instead of a file; may be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help="Which model; not needed when only one is deployed.")] = "",
    output: Annotated[
        list[str] | None, typer.Option(help="Output wanted; may be repeated. Default: the model's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the outputs to this .npz.", show_default=False)
    ] = None,
    cast: Annotated[
        bool,
        typer.Option("--cast", help="Round inputs to the dtype that the model computes with, if need be."),
    ] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say which tensors the model takes and gives; send nothing.")
    ] = False,
    cache_control: CacheControl = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Run tensors of any rank and dtype (or texts) through a model once.

    The first dimension is the batch: a large one is cut, shared by the model's replicas, and comes back in order.

    \b
    stagemesh infer --describe                         what does the model take?
    stagemesh infer batch.npz --out answer.npz         arrays by name, dtypes kept
    stagemesh infer image.npy                          a model with one input
    stagemesh infer --input a=a.npy --input b=b.npy    one file an input
    stagemesh infer rows.json --output logits --json   {"x": [[1, 2.5]]}
    stagemesh infer --text "some words"                an embedding
    """  # noqa: D301 (the escape keeps the lines apart)
    ways = (file is not None or bool(named), bool(text), describe)
    if sum(ways) != 1:
        raise InvalidArgument("give a FILE (or --input) with inputs, --text, or --describe", field="file")
    with Client(address, api_key=api_key or None, timeout_s=timeout) as client:
        name = model or only_model(client)
        if describe:
            _describe(_spec(client, name), as_json=as_json)
            return
        if text:
            embedding = client.embed_detailed(name, text, cache_control=cache_control)
            outputs: Arrays = {"embeddings": embedding.vectors}
            route, cache = embedding.route, embedding.cache
        else:
            inputs = read_inputs(file, named or (), _spec(client, name).inputs, cast=cast)
            inference = client.infer_detailed(name, inputs, output or (), cache_control=cache_control)
            outputs, route, cache = dict(inference.outputs), inference.route, inference.cache
    if out is not None:
        with out.open("wb") as target:
            np.savez(target, **outputs)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(_as_dict(outputs, route, cache)))
    else:
        for key, array in outputs.items():
            typer.echo(f"{key}: {array.dtype} {list(array.shape)}")
            typer.echo(np.array2string(array, threshold=24, precision=6))
        hops = ", ".join(f"stage {hop.stage} -> {hop.replica_id}" for hop in route)
        typer.echo(f"route: {hops or 'none'} | cache {cache or 'unknown'}", err=True)


def _spec(client: Client, name: str) -> ModelSpec:
    """The model's spec; an empty one when the router does not know the name, which it says itself when asked."""
    return next((each.spec for each in client.models() if each.spec.name == name), ModelSpec(name=name))


def _describe(spec: ModelSpec, *, as_json: bool) -> None:
    sides = {"inputs": spec.inputs, "outputs": spec.outputs}
    if as_json:
        listed: dict[str, Any] = {
            side: [
                {
                    "name": each.name,
                    "dtypes": list(each.dtypes),
                    "shape": list(each.shape),
                    "optional": each.optional,
                }
                for each in tensors
            ]
            for side, tensors in sides.items()
        }
        typer.echo(json.dumps({"model": spec.name, "task": spec.task, **listed}))
        return
    if not spec.inputs:
        raise InvalidArgument(f"--describe: the router has no list of {spec.name!r}'s tensors", field="model")
    for side, tensors in sides.items():
        typer.echo(f"{side} of {spec.name}:")
        for each in tensors:
            shape = ", ".join("any" if size < 0 else str(size) for size in each.shape)
            typer.echo(
                f"  {each.name}: {' or '.join(each.dtypes)} [{shape}]{' (optional)' if each.optional else ''}"
            )


def _as_dict(outputs: Arrays, route: tuple[RouteHop, ...], cache: str) -> dict[str, Any]:
    return {
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tolist()}
            for name, array in outputs.items()
        },
        "route": [{"stage": hop.stage, "replica": hop.replica_id, "address": hop.address} for hop in route],
        "cache": cache,
    }
