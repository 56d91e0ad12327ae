"""Where a cold start's time goes: etcd is watched from beside, and what is written there is when something was done.

Milestones, in seconds since the request, each of the last stage that reached it:

    woken      the scale record says that the model is wanted: the router held the request and called Wake
    nodes      every node that was forked for it has announced itself
    assigned   the registry has decided, and every stage has its assignment
    loading    every node has seen its assignment, and begins to load (partitions that are kept are not loaded)
    ready      every stage has loaded and tried itself out
    token      the router has seen that, sent the prompt, and the first token is at the client
"""

import asyncio
import contextlib
import time
from types import TracebackType

from stagemesh import records
from stagemesh.etcd import Change, Etcd
from stagemesh.v1.registry_pb2 import Assignment, NodeRecord, ReplicaRecord, ReplicaState, ScaleRecord

MILESTONES = ("woken", "nodes", "assigned", "loading", "ready", "token")
_STATES = {
    ReplicaState.REPLICA_STATE_LOADING: "loading",
    ReplicaState.REPLICA_STATE_READY: "ready",
}


class Phases:
    """`async with Phases(endpoints, model, zone) as phases:` notes milestones of one model; `taken` has them after `end`.

    Args:
        endpoints: of etcd.
        model: whose.
        zone: of the nodes that are forked for it.
    """

    def __init__(self, endpoints: str, model: str, zone: str) -> None:
        self._etcd = Etcd(endpoints)
        self._model = model
        self._zone = zone
        self._at: dict[str, float] = {}
        self._began = 0.0
        # Seconds since the request of each milestone that was reached.
        self.taken: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Phases":
        await self._etcd.start()
        listening = asyncio.Event()
        self._task = asyncio.create_task(self._follow(listening), name="phases")
        await listening.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._etcd.close()

    def begin(self) -> None:
        """The request is sent now; what was before does not count."""
        self._at.clear()
        self._began = time.perf_counter()

    def end(self, token_at: float) -> None:
        """The first token came then, by `perf_counter`."""
        reached = {**self._at, "token": token_at}
        self.taken = {name: reached[name] - self._began for name in MILESTONES if name in reached}

    async def _follow(self, listening: asyncio.Event) -> None:
        async for update in self._etcd.watch(records.ROOT):
            listening.set()
            if isinstance(update, Change) and update.value is not None:
                with contextlib.suppress(ValueError):
                    self._note(update.key, update.value)

    def _note(self, key: str, value: bytes) -> None:
        now = time.perf_counter()
        if key == records.scale_key(self._model):
            if any(records.from_json(value, ScaleRecord).replicas):
                self._at["woken"] = now
        elif key.startswith(records.REPLICAS):
            found = records.from_json(value, ReplicaRecord)
            if found.model == self._model and found.state in _STATES:
                self._at[_STATES[found.state]] = now
        elif key.startswith(records.NODES):
            node = records.from_json(value, NodeRecord)
            if self._zone and node.zone == self._zone and "assigned" not in self._at:
                self._at["nodes"] = now
        elif key.startswith(records.ASSIGNMENTS) and (
            records.from_json(value, Assignment).model == self._model
        ):
            self._at["assigned"] = now


def lengths(taken: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase: from the latest milestone before it; those that went on beside another take none."""
    found, before = dict[str, float](), 0.0
    for name, at in taken.items():
        found[name] = max(0.0, at - before)
        before = max(before, at)
    return found
