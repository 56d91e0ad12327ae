"""A node writes what it packed and maps it the next time; the folder stays within its limits, and damage costs a load only."""

import asyncio
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stagemesh.services.stage import loading
from stagemesh.services.stage.partition import fused as fused_module
from stagemesh.services.stage.partition import packed as packed_module
from stagemesh.services.stage.partition.kernels import load_kernels
from stagemesh.services.stage.partition.packed_file import MAKING, SUFFIX, Packed, StoppedError
from stagemesh.services.stage.warm import packed_store as store_module
from stagemesh.services.stage.warm.packed_store import PackedStore
from stagemesh.services.stage.warm.saving import Saving

from stagemesh.checkpoint import inspect
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec
from stagemesh.v1.registry_pb2 import Partition as Layers
from tests.checkpoints import make_llama
from tests.stage.one_node import one_node, until

if load_kernels(torch.float32) is None:
    pytest.skip("the kernels were not built", allow_module_level=True)


class Made:
    """A partition that was packed just now."""

    generates = True

    def __init__(self, nbytes: int = 4096) -> None:
        self.weight_bytes = nbytes
        self.made = Packed({"w": torch.zeros(nbytes, dtype=torch.uint8).view(torch.float32)})


def saved(store: PackedStore, key: str, nbytes: int = 4096, stop: threading.Event | None = None) -> bool:
    made: Any = Made(nbytes)
    store.note(key, made)
    return store.owes(made) and store.save(made, stop or threading.Event())


def there(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob(f"*{SUFFIX}")}


def store_of(folder: Path, limit: int) -> PackedStore:
    return PackedStore(folder, limit, least_bytes=0)


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    store = store_of(tmp_path, 15_000)  # three of them
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        assert saved(store, key)
        os.utime(tmp_path / f"{key}{SUFFIX}", (time.time() - age,) * 2)
    assert store.find("a", torch.float32) is not None  # which counts as used
    assert saved(store, "d")
    assert there(tmp_path) == {"a", "c", "d"}


def test_what_is_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    store = store_of(tmp_path, 15_000)
    assert saved(store, "a")
    assert not saved(store, "b", 20_480)
    assert there(tmp_path) == {"a"}


def test_a_tenth_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, 10**9)
    assert saved(store, "a")
    disk = SimpleNamespace(total=100_000, free=12_000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda folder: disk)
    os.utime(tmp_path / f"a{SUFFIX}", (1, 1))
    # Of 12,000 free bytes 10,000 stay free: there is room for `b` in the place of `a`, and for nothing larger.
    assert saved(store, "b", 6144)
    assert there(tmp_path) == {"b"}
    assert not saved(store, "c", 16_384)


def test_none_is_written_without_a_budget_or_of_little(tmp_path: Path) -> None:
    assert not saved(store_of(tmp_path / "x", 0), "a")
    assert not saved(PackedStore(tmp_path / "x", 10**9), "a")
    assert not (tmp_path / "x").exists()


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    old, new = tmp_path / f"{MAKING}old", tmp_path / f"{MAKING}new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert saved(store_of(tmp_path, 10**9), "a")
    assert not old.exists()
    assert new.exists()


def test_a_damaged_one_is_removed_and_not_used(tmp_path: Path) -> None:
    store = store_of(tmp_path, 10**9)
    assert saved(store, "a")
    path = tmp_path / f"a{SUFFIX}"
    path.write_bytes(path.read_bytes()[:-7])
    assert store.find("a", torch.float32) is None
    assert not there(tmp_path)


def test_the_key_follows_from_everything_that_the_content_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_llama(tmp_path / "m", layers=2)
    found, store = inspect(tmp_path / "m"), store_of(tmp_path, 1)

    def key(spec: dict[str, Any] | None = None, first: int = 0, end: int = 1) -> str:
        assignment = Assignment(partition=Layers(first_layer=first, end_layer=end))
        wanted = ModelSpec(source=str(tmp_path / "m"), task="generate", **(spec or {}))
        return store.key_of(wanted, assignment, found, tmp_path / "m")

    keys = {key(), key({"dtype": "BF16"}), key(first=1, end=2), key(end=2)}
    assert key() in keys
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "LAYOUT", 99)
        keys.add(key())
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "code_digest", lambda: "another processor")
        keys.add(key())
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 77)
        keys.add(key())
    # Its bytes are changed in the middle, which samples may not see.
    (weights,) = (tmp_path / "m").glob("*.safetensors")
    os.utime(weights, (1, 1))
    keys.add(key())
    assert len(keys) == 8


@pytest.mark.asyncio
async def test_a_partition_that_is_written_for_nobody_counts_as_memory(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(PackedStore):
        def save(self, partition: Any, stop: threading.Event) -> bool:
            started.set()
            while not go_on.wait(0.01):
                if stop.is_set():
                    raise StoppedError
            return True

    store = Slow(tmp_path, 10**9, 0)
    saving, first, second = Saving(store), Made(), Made()
    for number, each in enumerate((first, second)):
        store.note(str(number), each)  # type: ignore[arg-type]
        saving.begin(each)  # type: ignore[arg-type]
    await asyncio.to_thread(started.wait, 10)
    assert saving.bytes_beside([first]) == 0  # type: ignore[list-item]
    assert saving.bytes_beside([second]) == 4096  # type: ignore[list-item]
    del second, each  # nobody serves it, and its turn has not come
    started.clear()
    go_on.set()
    await until(lambda: saving._task is None or saving._task.done())
    assert not started.is_set()
    assert saving.bytes_beside([]) == 0
    saving.close()


@pytest.mark.asyncio
async def test_a_node_maps_what_it_packed_and_survives_its_damage(
    llama: Path, etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "_pays", lambda linear, form: True)
    monkeypatch.setattr(fused_module, "_pays", lambda plain_s, fused_s: True)
    monkeypatch.setattr(store_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(PackedStore.__init__, "__defaults__", (0,))
    loads: list[bool] = []
    load = loading.load_partition

    def counted(*args: Any, **more: Any) -> Any:
        loads.append(more.get("before") is not None)
        return load(*args, **more)

    monkeypatch.setattr(loading, "load_partition", counted)
    folder = tmp_path / "data" / "packed"
    for expected in ([False], [True], [False], [True]):
        loads.clear()
        await _serve_once(etcd, llama, tmp_path / "data")
        assert loads == expected
        assert len(there(folder)) == 1
        if expected == [True]:
            (path,) = folder.glob(f"*{SUFFIX}")
            path.write_bytes(path.read_bytes()[:-100])


async def _serve_once(etcd: str, llama: Path, data: Path) -> None:
    """A node that has the model until its packed file is there."""
    async with one_node(etcd, drain_s=0.1, keep_mb=0, data_dir=data) as running:
        replica_id = await running.assign("m", llama)
        await running.is_in(replica_id, "READY")
        await until(lambda: there(data / "packed"))
        await running.unassign(replica_id)
        await until(lambda: "GONE" in running.states[replica_id])
