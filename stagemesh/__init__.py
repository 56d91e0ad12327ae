"""stagemesh: distributed inference as a mesh of gRPC services.

`from stagemesh import Client, AsyncClient` gives the Python client; both are imported when first asked for, so
that `import stagemesh` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagemesh.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Client", "AsyncClient"):
        from stagemesh import client

        return getattr(client, name)
    raise AttributeError(f"module 'stagemesh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "AsyncClient", "Client"])
