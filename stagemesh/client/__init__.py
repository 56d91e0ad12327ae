"""The Python client of the router's gRPC API: generate, stream, infer, embed. Typed, no torch.

    from stagemesh import Client

    with Client("127.0.0.1:8001") as client:
        print(client.generate("demo", "def read_file(path):", max_tokens=32, temperature=0).text)

1. `requests` turns keyword arguments into a request message, naming the field that is wrong;
2. `sync.Client` and `asynchronous.AsyncClient` send it, with the same methods;
3. what fails is tried again where `failover` and `targets` say, streams from where `received` says that they broke;
4. `results` turns the answers into plain data; errors are those of `stagemesh.errors`.
"""

from stagemesh.client.asynchronous import AsyncClient
from stagemesh.client.asynchronous_stream import AsyncGenerationStream
from stagemesh.client.failover import ClientStats
from stagemesh.client.results import (
    Choice,
    Chunk,
    Embedding,
    Generation,
    Inference,
    RouteHop,
    StageTime,
    Usage,
)
from stagemesh.client.sync import Client
from stagemesh.client.sync_stream import GenerationStream

__all__ = [
    "AsyncClient",
    "AsyncGenerationStream",
    "Choice",
    "Chunk",
    "Client",
    "ClientStats",
    "Embedding",
    "Generation",
    "GenerationStream",
    "Inference",
    "RouteHop",
    "StageTime",
    "Usage",
]
