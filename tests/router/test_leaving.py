"""A caller leaves by each door, at each point of a request's way: its place is free, and nothing is begun for it."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from stagemesh.services.router.__main__ import HttpDoor

from .conftest import eventually
from .test_grpc_doors import Doors, ask


class WayIn:
    """Begins one request and can leave it; `leave` returns once the caller is gone."""

    def __init__(self, name, doors, http):
        self.name = name
        self._doors = doors
        self._http = http

    def __repr__(self):
        return self.name

    async def begin(self):
        request = ask(n=2 if self.name == "two answers" else 1)
        if self.name in ("gRPC", "two answers"):
            self._call = self._doors.own.Generate(request, timeout=60)
            self._reading = asyncio.create_task(self._read())
            return
        body = {"model": "m", "prompt": "w1", "max_tokens": 30, "temperature": 0}
        data = json.dumps({**body, "stream": self.name == "HTTP stream"}).encode()
        _, self._writer = await asyncio.open_connection("127.0.0.1", self._http.port)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)

    async def _read(self):
        return [chunk async for chunk in self._call]

    async def leave(self):
        if self.name in ("gRPC", "two answers"):
            self._call.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        else:
            self._writer.close()


@asynccontextmanager
async def ways_in(core):
    """Every way into the router."""
    http = HttpDoor(core, "127.0.0.1", 0)
    await http.started()
    try:
        async with Doors(core) as doors:
            yield [WayIn(name, doors, http) for name in ("gRPC", "two answers", "HTTP", "HTTP stream")]
    finally:
        await http.stop()


def idle(core):
    return core._gate.admission.active == core._gate.admission.waiting == 0


async def leave_at(core, way, there):
    """Begin, leave as soon as `there()`, and wait until nothing is held."""
    assert idle(core)
    await way.begin()
    await eventually(there)
    assert not idle(core)
    await way.leave()
    await eventually(lambda: idle(core))


async def test_while_the_tokenizer_is_loaded(mesh, monkeypatch):
    core = await mesh.start({"0a": "hang"})
    reached = 0

    async def never(spec):
        nonlocal reached
        reached += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(core.texts, "get", never)
    async with ways_in(core) as ways:
        for way in ways:
            before = reached
            await leave_at(core, way, lambda before=before: reached > before and not idle(core))
    assert not mesh.stages["0a"].opened


async def test_while_the_cache_is_asked(mesh):
    # Without the cancellation the cache would be given up, and the session would stay open at the stage.
    core = await mesh.start({"0a": "hang"}, cache="slow")
    async with ways_in(core) as ways:
        for way in ways:
            before = mesh.cache.lookups
            await leave_at(core, way, lambda before=before: mesh.cache.lookups > before)
            core._cache._pauses = type(core._cache._pauses)()
    assert not mesh.stages["0a"].opened


@pytest.mark.parametrize("mode", ["hold", "hang"])
async def test_before_the_first_token_and_after_it(mesh, mode):
    core = await mesh.start({"0a": mode})
    stage = mesh.stages["0a"]
    async with ways_in(core) as ways:
        for way in ways:
            opened, cancelled = len(stage.opened), stage.cancelled
            await leave_at(core, way, lambda opened=opened: len(stage.opened) > opened)
            await eventually(lambda: stage.cancelled == cancelled + len(stage.opened) - opened)  # noqa: B023
    assert core.loads.counts("0a")[1] == 0


async def test_while_it_waits_for_its_turn(mesh):
    core = await mesh.start({"0a": "hang"}, max_sessions=1)
    admission = core._gate.admission
    async with ways_in(core) as ways:
        first = WayIn("gRPC", ways[0]._doors, None)
        await first.begin()
        await eventually(lambda: len(mesh.stages["0a"].opened) == 1)
        for way in ways:
            await way.begin()
            await eventually(lambda: admission.waiting == 1)
            await way.leave()
            await eventually(lambda: admission.waiting == 0)
        assert admission.active == 1
        await first.leave()
        await eventually(lambda: idle(core))
    assert len(mesh.stages["0a"].opened) == 1
