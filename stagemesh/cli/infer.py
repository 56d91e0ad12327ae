"""`infer`: named tensors from a file through a model, or texts to embeddings."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from stagemesh.cli.generate import only_model
from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, Json, Timeout
from stagemesh.client import Client, RouteHop
from stagemesh.errors import InvalidArgument

Arrays = dict[str, npt.NDArray[Any]]


@one_line_errors
def infer(
    file: Annotated[
        Path | None,
        typer.Argument(help="Inputs: .npz, or JSON {name: nested lists}.", show_default=False),
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
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Run tensors (or texts) through a model once."""
    if (file is None) == (not text):
        raise InvalidArgument("give either a FILE with inputs or --text", field="file")
    inputs = read_inputs(file) if file is not None else {}
    with Client(address, api_key=api_key or None, timeout_s=timeout) as client:
        name = model or only_model(client)
        if text:
            embedding = client.embed_detailed(name, text)
            outputs: Arrays = {"embeddings": embedding.vectors}
            route, cache = embedding.route, embedding.cache
        else:
            inference = client.infer_detailed(name, inputs, output or ())
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


def read_inputs(file: Path) -> Arrays:
    """Named arrays of an .npz or JSON file.

    In JSON whole numbers become int64, others float32, true and false bool. Raises `InvalidArgument` naming the
    input that is not a regular array.
    """
    if file.suffix == ".npz":
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, EOFError) as error:
            raise InvalidArgument(f"{file.name}: not an .npz file of plain arrays", field="file") from error
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise InvalidArgument(f"{file.name}: not JSON ({error})", field="file") from error
    if not isinstance(content, dict) or not content:
        raise InvalidArgument(f"{file.name}: must be an object of name: array", field="file")
    return {name: _array(name, value) for name, value in content.items()}


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidArgument(f"{name}: rows of different lengths", field=name) from error
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "ib":
        return array
    raise InvalidArgument(f"{name}: must hold only numbers, or only true and false", field=name)


def _as_dict(outputs: Arrays, route: tuple[RouteHop, ...], cache: str) -> dict[str, Any]:
    return {
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tolist()}
            for name, array in outputs.items()
        },
        "route": [{"stage": hop.stage, "replica": hop.replica_id, "address": hop.address} for hop in route],
        "cache": cache,
    }
