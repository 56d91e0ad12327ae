"""R1: every process is restarted in turn, as a rolling update does it."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial

from stagemesh.local.processes import ChildProcess

from .mesh import until
from .scenario import Run, scenario


@scenario("R1", "a rolling restart of stages and routers under load", each_seed=False, in_ci=False)
async def rolling_restart(run: Run) -> None:
    mesh = run.mesh
    nodes = range(mesh.nodes) if run.full else [run.rng.randrange(mesh.nodes)]
    places = [partial(lambda index: mesh.stage_processes[index], index) for index in nodes]
    places += [partial(lambda index: mesh.router_processes[index], index) for index in range(mesh.routers)]
    async with mesh.client() as client:
        async with run.streams(clients=[client]) as streams:
            for place in places:
                await streams.reach(0.2)
                before = place()
                run.signal(before, signal.SIGTERM)

                async def replaced(place: Callable[[], ChildProcess] = place, pid: int = before.pid) -> bool:
                    return place().pid != pid and await mesh.whole(run.client)

                run.say(
                    "replaced, and every replica is ready", f"after {await until(replaced, 120, 0.2):.1f} s"
                )
            await asyncio.sleep(1.0)
            await streams.round()
        run.say("the client", str(client.stats))
