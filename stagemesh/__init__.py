"""stagemesh: distributed inference as a mesh of gRPC services.

`from stagemesh import Client, AsyncClient` gives the Python client; both are imported when first asked for, so
that `import stagemesh` costs nothing. `stagemesh.package(module, example_inputs, out_dir)` makes a folder to serve out of
any `torch.nn.Module`; it needs torch (the extra `stage`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagemesh.client import AsyncClient, Client
    from stagemesh.packaging.package import package

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "package"]


def __getattr__(name: str) -> Any:
    if name in ("Client", "AsyncClient"):
        from stagemesh import client

        return getattr(client, name)
    if name == "package":
        try:
            from stagemesh.packaging.package import package
        except ModuleNotFoundError as error:
            raise ImportError(
                f"stagemesh.package needs {error.name}: pip install 'stagemesh[stage]'"
            ) from error
        return package
    raise AttributeError(f"module 'stagemesh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "AsyncClient", "Client", "package"])
