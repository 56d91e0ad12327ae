"""Tells routers which blocks of prompts a replica holds: everything first, then what changes, with the load beside it.

One stream for each router that asked. A router that reads slowly gets fewer and larger reports: only its place among the
changes is kept for it, so that nothing waits here for it. One that fell behind what is remembered gets everything again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from stagemesh.errors import NotFound, ResourceExhausted
from stagemesh.v1.stage_pb2 import PrefixReport, ReplicaLoad

from .partition.holdings import Holdings, parts
from .replica import Replica

PERIOD_S = 0.1
"""Changes within it are told together."""
LOOK_S = 5.0
"""How often a stream of which nothing is heard looks whether its replica is still there."""
MOST_FOLLOWERS = 64
"""Routers that follow one replica."""


async def watch_prefixes(
    replica_id: str, find: Callable[[str], Replica | None]
) -> AsyncGenerator[PrefixReport, None]:
    """Reports on a replica until it is gone or nobody listens any more.

    Raises:
        NotFound: it is not here, or not any more.
        ResourceExhausted: too many follow it.
    """
    holdings = _holdings(replica_id, find)
    if holdings is None:
        raise NotFound("replica_id: no such replica on this node", field="replica_id")
    if holdings.listeners >= MOST_FOLLOWERS:
        raise ResourceExhausted(f"{MOST_FOLLOWERS} routers follow this replica already", retry_after_s=10.0)
    changed = asyncio.Event()
    forget = holdings.listen(changed.set)
    since: int | None = None
    try:
        while _holdings(replica_id, find) is holdings:
            if since != holdings.sequence:
                changed.clear()
                report = holdings.report(since)
                load = _load(replica_id, find)
                for part in parts(report):
                    if not part.more:
                        part.load.CopyFrom(load)
                    yield part
                since = report.sequence
            await asyncio.sleep(PERIOD_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await changed.wait()
            except TimeoutError:
                pass
    finally:
        forget()
    raise NotFound("replica_id: the replica is no longer on this node", field="replica_id")


# A stream that waits keeps nothing of its replica but this: that may be unloaded, and its memory be another one's.
def _holdings(replica_id: str, find: Callable[[str], Replica | None]) -> Holdings | None:
    replica = find(replica_id)
    return replica.pool.blocks.holdings if replica is not None else None


def _load(replica_id: str, find: Callable[[str], Replica | None]) -> ReplicaLoad:
    replica = find(replica_id)
    return replica.load() if replica is not None else ReplicaLoad()
