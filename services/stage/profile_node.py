"""A node learns how fast it is for the models that it hosts: in the background, between other passes, once.

1. a partition is ready; `Profiles.learn` looks for a profile of its model's layers and this hardware in the data folder;
2. without one, passes of 1, 8 and 32 rows run on the partition's own compute thread while it has no sessions: each
   pass is a job of its own, so a session that comes waits for one of them at most;
3. the node's record says what was found, for planners; the file is kept for the next start.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from stagemesh import checkpoint as checkpoints
from stagemesh import records
from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import StagemeshError
from stagemesh.etcd import Etcd
from stagemesh.planning.profile import Profile, default_folder, load, save, shape_of
from stagemesh.v1.registry_pb2 import LinkProfile, ModelSpec, NodeRecord

from .partition.interface import Partition
from .profile_links import measure_links
from .profile_machine import disk_gbps, hardware
from .profile_passes import ROWS, TRIES, Pass, passes
from .replica import Replica

__all__ = ["Profiles"]

log = logging.getLogger(__name__)

# Of measuring alone, and how long a replica without a break is waited for.
BUDGET_S = 1.5
_POLL_S, _PATIENCE_S = 1.0, 600.0
_MOST_NEIGHBOURS = 8
# How often others may come in between.
_ATTEMPTS = 20


class Profiles:
    """What a node knows of its speed.

    Args:
        record: of the node; what is found is written into it.
        etcd: where the neighbours are.
        announce: writes the record.
        fast: as partitions are loaded.
        data_dir: whose folder `profiles` keeps them; by default the user's cache folder.
    """

    def __init__(
        self,
        record: NodeRecord,
        etcd: Etcd,
        announce: Callable[[], Awaitable[None]],
        fast: bool,
        data_dir: Path | None = None,
    ) -> None:
        self._record = record
        self._etcd = etcd
        self._announce = announce
        self._fast = fast
        self._folder = data_dir / "profiles" if data_dir else default_folder()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def learn(self, replica: Replica, spec: ModelSpec) -> None:
        """Find out in the background how fast this node is for the model, if it is not known."""
        name = replica.replica_id
        task = asyncio.create_task(self._learn(replica, spec), name=f"profile-{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._tasks.pop(name) if self._tasks.get(name) is done else None)

    async def forget(self, replica_id: str) -> None:
        """End what is under way on a replica; a pass that has begun ends first."""
        task = self._tasks.get(replica_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _learn(self, replica: Replica, spec: ModelSpec) -> None:
        try:
            found = await asyncio.to_thread(checkpoints.inspect_source, spec.source, spec.hub_revision)
            shape = shape_of(found, spec.dtype)
            if any(one.shape == shape for one in self._record.layer_profiles):
                return
            key = hardware(self._record.device, self._fast).key(shape)
            profile = await asyncio.to_thread(load, self._folder, key)
            if profile is None:
                layer_ms = await self._measure(replica, found)
                if not layer_ms:
                    return
                folder = checkpoints.resolve(spec.source, spec.hub_revision)
                disk = await asyncio.to_thread(disk_gbps, folder)
                profile = Profile(key=key, shape=shape, layer_ms=layer_ms, overhead_ms=0.0, disk_gbps=disk)
                await asyncio.to_thread(save, self._folder, profile)
            await self._publish(profile)
            log.info("profile.learnt %s %s", spec.name, profile.layer_ms)
        except (StagemeshError, OSError) as error:
            log.warning("profile.failed %s: %s", spec.name, error)
        except Exception:
            # Nothing that serves depends on it.
            log.exception("profile.failed %s", spec.name)

    async def _publish(self, profile: Profile) -> None:
        if not any(one.shape == profile.shape for one in self._record.layer_profiles):
            self._record.layer_profiles.append(profile.record())
        self._record.disk_gbps = max(self._record.disk_gbps, profile.disk_gbps)
        for name, link in (await measure_links(await self._neighbours())).items():
            self._record.links[name].CopyFrom(LinkProfile(rtt_ms=link.rtt_ms, gbit=link.gbit))
        await self._announce()

    async def _neighbours(self) -> list[tuple[str, str]]:
        items, _ = await self._etcd.get_prefix(records.NODES)
        found = []
        for item in items:
            try:
                node = records.from_json(item.value, NodeRecord)
            except ValueError:
                continue  # of a newer version, or damaged: the registry tells of it
            if node.node_id != self._record.node_id and node.address:
                found.append((node.node_id, node.address))
        return found[:_MOST_NEIGHBOURS]

    async def _measure(self, replica: Replica, found: Checkpoint) -> dict[int, float]:
        """Rows -> milliseconds of one layer of average size; empty when there was never a moment for it."""
        model = replica.model
        size = sum(found.layer_bytes[model.first_layer : model.end_layer])
        layers = size / (sum(found.layer_bytes) / found.layers)
        left_s, times = BUDGET_S, dict[int, float]()
        for rows in ROWS:
            if left_s <= 0 or (rows > 1 and found.task == "tensor"):
                break
            best = await self._best(replica, model, rows, left_s)
            if best is None:
                break
            seconds, spent_s = best
            left_s -= spent_s
            if seconds:
                times[rows] = seconds * 1e3 / layers
        return times

    async def _best(
        self, replica: Replica, model: Partition, rows: int, budget_s: float
    ) -> tuple[float, float] | None:
        """Seconds of the quickest pass (0: the pool had no room) and of all of them; None: it was never idle."""
        spent = 0.0
        for _ in range(_ATTEMPTS):
            if not await self._idle(replica):
                return None
            tried: list[float] = []
            # Nothing is kept reserved while others are served.
            with passes(model, replica.pool, rows) as one:
                if one is None:
                    return 0.0, 0.0
                while len(tried) <= TRIES and not _serves(replica):
                    tried.append(await _run(replica, one))
                    spent += tried[-1]
                    if len(tried) > 1 and spent >= budget_s:
                        break
            if len(tried) > 1:
                return min(tried[1:]), spent  # the first one warms up
        return None

    async def _idle(self, replica: Replica) -> bool:
        """Wait until nobody is served; False when that did not come about."""
        waited_s = 0.0
        while _serves(replica):
            if waited_s >= _PATIENCE_S:
                return False
            await asyncio.sleep(_POLL_S)
            waited_s += _POLL_S
        return True


def _serves(replica: Replica) -> bool:
    return bool(replica.sessions or replica.engine.waiting)


async def _run(replica: Replica, one: Pass) -> float:
    """Seconds of a pass. Cancelled, it waits for its end: what the pass writes to must not be given to others before."""
    task = asyncio.ensure_future(replica.engine.run(one))
    try:
        seconds, _ = await asyncio.shield(task)
        return seconds
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
