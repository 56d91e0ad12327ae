"""Options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stagemesh.errors import InvalidArgument, NotFound

Address = Annotated[
    str,
    typer.Option(
        "--target",
        "--address",
        envvar="STAGEMESH_ADDRESS",
        help="Router's gRPC host:port; of several, any that answers.",
        metavar="H:P[,H:P...]",
    ),
]
Registry = Annotated[
    str, typer.Option("--registry", envvar="STAGEMESH_REGISTRY", help="Registry's host:port.", metavar="H:P")
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="STAGEMESH_API_KEY", help="Credential, if asked for.")
]
Timeout = Annotated[float, typer.Option("--timeout", help="Deadline in seconds.", min=0.001)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_REGISTRY = "127.0.0.1:8002"
DEFAULT_REGISTRY_PORT = 8002

Force = Annotated[bool, typer.Option("--force", help="Serve a split that no parity certificate vouches for.")]
CacheControl = Annotated[
    str,
    typer.Option(
        "--cache-control",
        metavar="TEXT",
        help="What you want of the cache, with commas: no-cache, no-store, no-semantic, ttl=SECONDS, max-age=SECONDS, "
        "namespace=NAME, tag=NAME, sampled, replay=chunks or whole. For instance 'ttl=60, namespace=docs'.",
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        help="What `stagemesh verify --out` wrote for this checkpoint and number of stages.",
        show_default=False,
    ),
]


def labels_of(words: Sequence[str] | None) -> dict[str, str]:
    """KEY=VALUE words as a mapping; raises `InvalidArgument` for one that is not."""
    wrong = [word for word in words or () if "=" not in word or word.startswith("=")]
    if wrong:
        raise InvalidArgument(f"--label: {wrong[0]!r} is not KEY=VALUE", field="label")
    return dict(word.split("=", 1) for word in words or ())


def certificate_text(file: Path | None) -> str:
    """What the file holds; empty without one. Raises `NotFound` when it cannot be read."""
    try:
        return "" if file is None else file.read_text()
    except (OSError, UnicodeDecodeError):
        raise NotFound(
            f"--certificate: {str(file)!r} is no file that can be read", field="certificate"
        ) from None
