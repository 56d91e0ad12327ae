"""Registries inside the test's process, on a real etcd: each with a client, a mirror and a controller of its own."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random

from stagemesh.services.registry.assign import Patience
from stagemesh.services.registry.controller import Controller
from stagemesh.services.registry.leadership import Leadership
from stagemesh.services.registry.mirror import Mirror

from stagemesh import records
from stagemesh.etcd import Change, Etcd, Snapshot
from stagemesh.v1.registry_pb2 import ModelSpec, NodeRecord, Partition

MIB = 2**20


def spec_of(name: str, stages: int, replicas: int, partition_bytes: int = MIB) -> ModelSpec:
    """A model of so many stages, a layer each."""
    return ModelSpec(
        name=name,
        revision="r1",
        generation=1,
        checkpoint_dtype="F32",
        partitions=[
            Partition(first_layer=n, end_layer=n + 1, parameter_bytes=partition_bytes) for n in range(stages)
        ],
        replicas=[replicas] * stages,
    )


def node_of(node_id: str, memory: int = 64 * MIB, **more: object) -> NodeRecord:
    """A node on a CPU."""
    return NodeRecord(node_id=node_id, address="127.0.0.1:1", device="cpu", memory_bytes=memory, **more)  # type: ignore[arg-type]


class InProcess:
    """One registry, but for its RPCs.

    `before_write` is awaited before each of the controller's transactions. Clearing `sees` holds up its watch.
    """

    def __init__(self, endpoint: str, name: str, ttl_s: int = 2, seed: int = 0) -> None:
        self.etcd = Etcd(endpoint)
        self.mirror = Mirror(self.etcd)
        self.leadership = Leadership(self.etcd, name, ttl_s)
        self.controller = Controller(self.etcd, self.mirror, self.leadership, Patience(), Random(seed))
        self.before_write: Callable[[], Awaitable[None]] | None = None
        self.sees = asyncio.Event()
        self.sees.set()
        self.tasks: list[asyncio.Task[None]] = []
        watch = self.etcd.watch

        async def held_up(prefix: str) -> AsyncGenerator[Snapshot | Change, None]:
            async for event in watch(prefix):
                await self.sees.wait()
                yield event

        self.etcd.watch = held_up  # type: ignore[method-assign]
        transact = self.etcd.transact

        async def hooked(*args: object, **more: object) -> int:
            if self.before_write is not None:
                await self.before_write()
            return await transact(*args, **more)  # type: ignore[arg-type]

        self.etcd.transact = hooked  # type: ignore[method-assign]

    async def start(self) -> "InProcess":
        await self.etcd.start()
        self.tasks = [asyncio.create_task(self.mirror.follow()), asyncio.create_task(self.controller.run())]
        return self

    async def die(self) -> None:
        """It does nothing any more, and its lease runs out (at once, so that nobody has to wait for it)."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        await self.etcd.close()


async def put_world(etcd: Etcd, *things: ModelSpec | NodeRecord) -> None:
    """Write models and nodes."""
    for thing in things:
        key = (
            records.model_key(thing.name) if isinstance(thing, ModelSpec) else records.node_key(thing.node_id)
        )
        await etcd.put(key, records.to_json(thing))
