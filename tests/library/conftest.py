import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from stagemesh.etcd import Change, Etcd, Snapshot
from tests.library.etcd_process import EtcdProcess


@pytest.fixture
async def etcd_process(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    process = EtcdProcess(tmp_path)
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
async def etcd(etcd_process: EtcdProcess) -> AsyncIterator[Etcd]:
    client = Etcd(etcd_process.address)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def other(etcd_process: EtcdProcess) -> AsyncIterator[Etcd]:
    """A second client, to look and to meddle."""
    client = Etcd(etcd_process.address)
    await client.start()
    yield client
    await client.close()


class Table:
    """What a consumer of `Etcd.watch` knows."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self.items: dict[str, bytes] = {}
        self.snapshots: list[Snapshot] = []
        self.changes: list[Change] = []
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for event in self._etcd.watch(self._prefix):
            if isinstance(event, Snapshot):
                self.snapshots.append(event)
                self.items = dict(event.items)
                continue
            self.changes.append(event)
            if event.value is None:
                self.items.pop(event.key, None)
            else:
                self.items[event.key] = event.value

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[Etcd, str], Table]]:
    tables: list[Table] = []

    def make(etcd: Etcd, prefix: str) -> Table:
        tables.append(Table(etcd, prefix))
        return tables[-1]

    yield make
    for table in tables:
        await table.close()


async def _eventually(check: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until `check()` (which may be a coroutine function) is true."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                result = check()
                if isinstance(result, Awaitable):
                    result = await result
                if result:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not true within {within_s} s")


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    return _eventually
