import asyncio
from contextlib import AsyncExitStack

import pytest
from stagemesh.services.router import session_run
from stagemesh.services.router.config import RouterConfig
from stagemesh.services.router.core import RouterCore

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.v1 import registry_pb2
from tests.library.etcd_process import EtcdProcess

from .scripted_cache import ScriptedCache
from .scripted_stage import ScriptedStage
from .specs import listing, model, replica


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a tokenizer of 100 words `w0 w1 ...` and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    vocab = {f"w{i}": i for i in range(100)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text('{"eos_token_id": 20}')
    return folder


@pytest.fixture
async def etcd_process(tmp_path):
    process = EtcdProcess(tmp_path)
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
async def etcd(etcd_process):
    client = Etcd(etcd_process.address)
    await client.start()
    yield client
    await client.close()


async def eventually(check, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.01)


class Mesh:
    """A real core on a real etcd, with scripted peers."""

    def __init__(self, etcd, checkpoint, stack):
        self.etcd = etcd
        self.checkpoint = checkpoint
        self._stack = stack
        self.stages = {}
        self.cache = None
        self.core = None

    async def put(self, *items):
        for key, value in listing(*items).items():
            await self.etcd.put(key, value)

    async def start(self, modes=None, *, cache=None, task="generate", stages=2, spec=None, **config):
        """`modes`: replica id of stage 0 -> mode of its node. Later stages need no node of their own here."""
        for replica_id, mode in (modes or {"0a": "good", "0b": "good"}).items():
            node = await self._stack.enter_async_context(ScriptedStage(mode))
            self.stages[replica_id] = node
            await self.put(replica(replica_id, 0, stages, address=node.address))
        for stage in range(1, stages):
            for each in "ab":
                await self.put(replica(f"{stage}{each}", stage, stages, address="127.0.0.1:9"))
        await self.put(
            model(
                task=task,
                stages=stages,
                source=str(self.checkpoint),
                **{"cache": cache is not None, **(spec or {})},
            )
        )
        if cache is not None:
            self.cache = await self._stack.enter_async_context(ScriptedCache(cache))
            await self.put(registry_pb2.ServiceRecord(kind="cache", id="c", address=self.cache.address))
        settings = RouterConfig(**{"etcd": "x:1", "lease_ttl_s": 1, "cache_timeout_ms": 20_000, **config})
        self.core = await self._stack.enter_async_context(RouterCore(settings, self.etcd))
        return self.core

    async def enter(self, manager):
        """Enter a context manager until the end of the test."""
        return await self._stack.enter_async_context(manager)

    async def remove(self, prefix=records.ROOT):
        await self.etcd.delete_prefix(prefix)


@pytest.fixture
async def mesh(etcd, checkpoint):
    async with AsyncExitStack() as stack:
        yield Mesh(etcd, checkpoint, stack)


@pytest.fixture
def hopeless(monkeypatch):
    """A session is given up by the number of attempts alone, and they follow one another at once."""
    monkeypatch.setattr(session_run, "HOPELESS_S", 0.0)
    monkeypatch.setattr(session_run, "LONGEST_PAUSE_S", 0.01)
