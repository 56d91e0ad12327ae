"""What becomes of one assignment: loading, serving, leaving, and what is done when it hangs.

A replica whose pass hangs is given up at once: its record says why, its sessions are told upstream as lost, its streams
end, and nothing more is put on this node. If the pass does not come back, what it holds cannot be freed, and the node
ends as on SIGTERM, so that its supervisor starts it again.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from stagemesh import records
from stagemesh.errors import CheckpointError, StagemeshError, Unavailable
from stagemesh.etcd import Etcd, Lease
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord, ReplicaState

from . import metrics
from .apart import apart
from .canary import probe
from .config import StageConfig
from .failure import told
from .head import Head
from .hosted import Hosted
from .loading import give_back, kv_budget, load_assigned, wanted_spec, weight_bytes
from .partition.interface import Partition
from .profile_node import Profiles
from .relay import Upstream
from .replica import Replica
from .spans import traced_load
from .warm.kept import KeptPartitions, Key, Loaded
from .warm.saving import saving_of
from .watchdog import Limits
from .watcher import Watcher

log = logging.getLogger(__name__)

# How long a pass that hangs may still come back before the node ends.
COME_BACK_S = 10.0
# How long whoever leaves waits for the last pass of what measures it.
LAST_PASS_S = 1.0
# Partitions that load beside one another.
LOADS_AT_ONCE = 4
# How long whoever wants a partition waits for one that is just being let go of.
LET_GO_S = 2.0
# Routers look elsewhere within that, once a record says that a replica leaves.
NOTICED_S = 0.2


class Hosting:
    """Loads, serves and unloads the partitions of one node, one task for each.

    Args:
        config: of the node.
        record: of the node; `draining` is kept here.
        etcd: started.
        lease: under which the records live.

    Attributes:
        hosted: by replica id.
        ending: those that are no longer asked for.
        given_up: set when the node must end, with `why`.
    """

    def __init__(self, config: StageConfig, record: NodeRecord, etcd: Etcd, lease: Lease) -> None:
        self.hosted: dict[str, Hosted] = {}
        self.ending: set[Hosted] = set()
        self.given_up = asyncio.Event()
        self.why = ""
        self._config = config
        self._record = record
        self._etcd = etcd
        self._lease = lease
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        # Bytes set aside for what is being loaded, by replica id: reading cannot be stopped, and may go on for nobody.
        self._reading: dict[str, int] = {}
        self._kept = KeptPartitions(record, config.keep_mb)
        self._saving = saving_of(config, record)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._profiles = Profiles(record, etcd, self.announce, config.fast, config.data_dir)
        self._watcher: Watcher | None = None
        if config.hang_s:
            self._watcher = Watcher(Limits(still_s=config.hang_s))
            self._watcher.start()

    async def announce(self) -> None:
        """Write the node's record; nothing is put on it, and it is relieved of what it has, while it leaves or hangs."""
        self._record.draining = self._leaving or any(one.hangs for one in self.hosted.values())
        await self._lease.put(records.node_key(self._record.node_id), records.to_json(self._record))

    async def publish(self, hosted: Hosted, state: ReplicaState, detail: str = "") -> None:
        """Write the record of a replica."""
        hosted.record.state = state
        hosted.record.detail = detail
        await self._lease.put(_key(hosted.assignment), records.to_json(hosted.record))
        log.info("replica.%s %s %s", hosted.state, hosted.assignment.replica_id, detail)
        self._count()

    def find(self, replica_id: str) -> Hosted | None:
        """What serves under that id."""
        hosted = self.hosted.get(replica_id)
        if hosted is None:
            hosted = next((one for one in self.ending if one.assignment.replica_id == replica_id), None)
        return hosted if hosted is not None and hosted.serves else None

    def _count(self) -> None:
        ready = sum(one.record.state == ReplicaState.REPLICA_STATE_READY for one in self.hosted.values())
        metrics.REPLICAS.set(ready)

    # ---- loading ----

    def begin(self, hosted: Hosted) -> None:
        """Load and serve it, unless the node leaves."""
        if self._leaving:
            return
        self.hosted[hosted.assignment.replica_id] = hosted
        work = traced_load(hosted.assignment, partial(self._load, hosted))
        hosted.task = asyncio.create_task(work, name=f"load-{hosted.assignment.replica_id}")

    async def _load(self, hosted: Hosted) -> None:
        assignment = hosted.assignment
        limit: asyncio.Timeout | None = None
        try:
            found = await self._etcd.get(records.model_key(assignment.model))
            if found is None:
                raise CheckpointError("the model was undeployed meanwhile")
            spec = wanted_spec(records.from_json(found.value, ModelSpec), assignment)
            hosted.key = Key.of(spec, assignment)
            hosted.loaded = kept = await self._kept_of(hosted.key)
            if kept is not None:
                replica = await self._replica(hosted, spec, kept.partition, again=True)
            else:
                await self.publish(hosted, ReplicaState.REPLICA_STATE_LOADING)
                async with self._loading, asyncio.timeout(self._config.load_timeout_s) as limit:
                    replica = await self._replica(hosted, spec, await self._read(hosted, spec))
            hosted.replica = replica
            if assignment.stage == 0:
                hosted.head = Head(replica, assignment.stages, self._config.chunk_tokens)
            await self.publish(hosted, ReplicaState.REPLICA_STATE_READY)
            if kept is None:
                self._profiles.learn(replica, spec)
                self._saving.begin(replica.model)
            else:
                await self.announce()
        except TimeoutError as error:
            late = limit is not None and limit.expired()
            detail = f"it still loads after {self._config.load_timeout_s:g} s" if late else told(error)
            await self.publish(hosted, ReplicaState.REPLICA_STATE_FAILED, detail)
        except Exception as error:
            if not isinstance(error, StagemeshError):
                log.exception("loading %s failed", assignment.replica_id)
            await self.publish(hosted, ReplicaState.REPLICA_STATE_FAILED, told(error))

    async def _kept_of(self, key: Key) -> Loaded | None:
        """The partition if it is loaded and nobody's; one that is just being let go of is waited for a moment."""
        leaving = [one.gone.wait() for one in self.ending if one.key == key and not one.hangs]
        if leaving:
            tasks = [asyncio.ensure_future(one) for one in leaving]
            _, late = await asyncio.wait(tasks, timeout=LET_GO_S, return_when=asyncio.FIRST_COMPLETED)
            for task in late:
                task.cancel()
        return self._kept.take(key)

    async def _read(self, hosted: Hosted, spec: ModelSpec) -> Partition:
        """Load it from its checkpoint, into memory that is set aside before others look for theirs."""
        assignment, name = hosted.assignment, hosted.assignment.replica_id
        free, needed = self._free_bytes(), weight_bytes(spec, assignment.partition, self._config.device)
        self._reading[name] = needed
        if self._kept.shrink(free - needed):
            await asyncio.to_thread(give_back)
        load = partial(
            load_assigned,
            spec,
            assignment,
            self._config.device,
            free,
            self._config.fast,
            self._saving.store,
        )
        started = time.monotonic()

        def read() -> None:
            self._reading.pop(name, None)

        model = await apart(load, f"load-{name}", read, self._config.nice)
        hosted.loaded = Loaded(model, time.monotonic() - started)
        return model

    async def _replica(
        self, hosted: Hosted, spec: ModelSpec, model: Partition, again: bool = False
    ) -> Replica:
        """Give it memory for sessions and try it out; `again`: it served before."""
        assignment = hosted.assignment
        left = max(0, self._free_bytes() - model.weight_bytes)
        kv_bytes = kv_budget(self._config, model, spec, left)
        self._reading[assignment.replica_id] = model.weight_bytes + kv_bytes
        self._kept.shrink(self._free_bytes())
        try:
            return await self._tried(hosted, model, kv_bytes, again)
        finally:
            self._reading.pop(assignment.replica_id, None)

    async def _tried(self, hosted: Hosted, model: Partition, kv_bytes: int, again: bool) -> Replica:
        assignment = hosted.assignment
        replica = Replica(
            assignment.replica_id,
            assignment.model,
            assignment.stage,
            model,
            kv_bytes,
            self._config.journal_mb * 2**20,
            self._config.nice,
        )
        replica.links.shared_memory_bytes = self._config.shared_memory_mb * 2**20
        replica.links.local_sockets = self._config.local_sockets
        if self._watcher is not None:
            self._watcher.watch(
                replica.engine,
                spins=model.device.type != "cpu",
                on_hang=lambda why: self._hangs(hosted, replica, why),
                on_return=lambda: self._returned(hosted, replica),
            )
        try:
            hosted.record.canary_ms = await probe(replica, again)
        except BaseException:
            replica.engine.close()
            if not hosted.hangs:
                self._unwatch(replica)
            raise
        # The average begins warm: the canary's first pass would make the replica look slow for long.
        replica.engine.step_ms = hosted.record.canary_ms
        hosted.record.kv_bytes_total = kv_bytes
        return replica

    def _free_bytes(self) -> int:
        """What is left of the node's memory beside the partitions it hosts, and those read, or written, for nobody."""
        serving = [one.loaded.partition for one in self.hosted.values() if one.loaded is not None]
        used = self._saving.bytes_beside(serving) + sum(self._reading.values())
        used += sum(
            hosted.replica.model.weight_bytes + hosted.replica.pool.budget_bytes
            for hosted in self.hosted.values()
            if hosted.replica is not None
        )
        return max(0, self._record.memory_bytes - used)

    # ---- hanging ----

    def _hangs(self, hosted: Hosted, replica: Replica, why: str) -> None:
        """A pass does not end: part with the replica as if it had died."""
        metrics.HANGS.labels(hosted.assignment.model, str(hosted.assignment.stage)).inc()
        log.error("replica.hangs %s: %s", hosted.assignment.replica_id, why)
        hosted.hangs = True
        hosted.record.state = ReplicaState.REPLICA_STATE_FAILED
        error = Unavailable(f"stage {hosted.assignment.stage} hangs")
        replica.engine.close(error.message)
        replica.lose(error)
        _end_streams(replica, error)
        self._spawn(self._give_up(hosted, replica, f"a pass hangs: {why}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_up(self, hosted: Hosted, replica: Replica, detail: str) -> None:
        if hosted.task is not None and not hosted.task.done():
            hosted.task.cancel()
            await asyncio.gather(hosted.task, return_exceptions=True)
        await self.publish(hosted, ReplicaState.REPLICA_STATE_FAILED, detail)
        await self.announce()
        if hosted.head is not None:
            await hosted.head.close()
        await replica.close()
        await asyncio.sleep(COME_BACK_S)
        if hosted.hangs:
            self.why = f"{hosted.assignment.replica_id}: {detail}"
            self.given_up.set()

    def _returned(self, hosted: Hosted, replica: Replica) -> None:
        """The pass ended after all. The replica stays given up; the node may be used again."""
        log.warning("replica.returned %s", hosted.assignment.replica_id)
        hosted.hangs = False
        self._unwatch(replica)
        self._spawn(self.announce())

    # ---- leaving ----

    async def unload(self, hosted: Hosted) -> None:
        """Stop being chosen, let sessions finish, then free everything."""
        self.ending.add(hosted)
        try:
            served = hosted.record.state == ReplicaState.REPLICA_STATE_READY
            if served:
                await self.publish(hosted, ReplicaState.REPLICA_STATE_DRAINING)
                await self._idle([hosted], self._config.drain_s)
            await self._shut(hosted)
            if served:
                self._keep(hosted)
            hosted.gone.set()
            try:
                if served:  # first: whoever sees that the replica is gone, and wants it again, is to see that it is kept
                    await self.announce()
            finally:
                await self._lease.delete(_key(hosted.assignment))
        finally:
            hosted.gone.set()
            self.ending.discard(hosted)
        hosted.replica = hosted.head = hosted.loaded = None
        await asyncio.to_thread(give_back)

    def _keep(self, hosted: Hosted) -> None:
        """What served well stays loaded, as long as nothing else needs its memory."""
        if hosted.hangs or hosted.loaded is None or hosted.key is None or self._leaving:
            return
        hosted.replica = hosted.head = None
        self._kept.put(hosted.key, hosted.loaded, self._free_bytes())

    async def relieve(self) -> None:
        """Give up what is kept, if the machine runs short of memory."""
        if self._kept.relieve():
            await asyncio.to_thread(give_back)
            await self.announce()

    async def drain(self) -> None:
        """Leave for good: no longer be chosen, let sessions finish, send the others elsewhere, free everything.

        A second call does nothing.
        """
        if self._leaving:
            return
        self._leaving = True
        self._saving.close()
        hosted = list(self.hosted.values())
        ready = [one for one in hosted if one.record.state == ReplicaState.REPLICA_STATE_READY]
        writes = [self.publish(one, ReplicaState.REPLICA_STATE_DRAINING) for one in ready]
        try:
            async with asyncio.timeout(2.0):  # etcd may be away
                await asyncio.gather(self.announce(), *writes)
        except TimeoutError:
            log.warning("node.drain: etcd does not answer")
        await self._idle(ready, self._config.drain_s)
        await asyncio.gather(*(self._shut(one) for one in hosted), return_exceptions=True)
        await self._lease.revoke()
        for task in self._tasks:
            task.cancel()
        if self._watcher is not None:
            self._watcher.stop()

    async def _idle(self, hosted: list[Hosted], seconds: float) -> None:
        """Wait until no sessions are left, at most `seconds`; routers need a moment to look elsewhere first."""
        end = time.monotonic() + seconds
        await asyncio.sleep(min(NOTICED_S, seconds))
        while time.monotonic() < end and any(one.replica and one.replica.sessions for one in hosted):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _shut(self, hosted: Hosted) -> None:
        """End it: what sessions it still has go on elsewhere, where they can."""
        hosted.closed = True
        if hosted.task is not None:
            hosted.task.cancel()
            await asyncio.gather(hosted.task, return_exceptions=True)
        replica = hosted.replica
        if replica is not None:
            left = Unavailable(f"stage {hosted.assignment.stage} is leaving")
            replica.lose(left)
            _end_streams(replica, left)
            if not hosted.hangs:
                self._unwatch(replica)
        # What measures it lets the pass end that it is in, and nobody waits for one that does not.
        forgetting = asyncio.create_task(self._profiles.forget(hosted.assignment.replica_id))
        await asyncio.wait({forgetting}, timeout=LAST_PASS_S)
        if hosted.head is not None:
            await hosted.head.close()
        if replica is not None:
            await replica.close()

    def _unwatch(self, replica: Replica) -> None:
        if self._watcher is not None:
            self._watcher.unwatch(replica.engine)


def _key(assignment: Assignment) -> str:
    return records.replica_key(assignment.model, assignment.stage, assignment.replica_id)


def _end_streams(replica: Replica, error: StagemeshError) -> None:
    """End what comes in, after what was told; who sends it takes this replica for lost."""
    for upstream in list(replica.links.upstreams.values()):
        if isinstance(upstream, Upstream):
            upstream.end(error)
