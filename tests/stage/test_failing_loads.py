"""Weights that cannot be had: the record names the file and why, it is never ready, and what is beside it serves."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from stagemesh.services.stage.failure import told, without_paths
from stagemesh.services.stage.loading import load_assigned

from stagemesh.checkpoint import inspect, inspect_source
from stagemesh.errors import CheckpointError, ResourceExhausted
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, Partition
from tests.stage.one_node import one_node, until
from tests.stage.small_hub import small_hub


def shard_of(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 1000)


def empty(shard: Path) -> None:
    os.truncate(shard, 0)


def no_file(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


def loop(shard: Path) -> None:
    shard.unlink()
    shard.symlink_to(shard.name)


def garbled(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(8)
        file.write(b"x" * 20)


@pytest.mark.asyncio
async def test_a_broken_shard_is_named_and_nothing_else_suffers(
    tied_llama: Path, llama: Path, etcd: str, tmp_path: Path
) -> None:
    faults: list[tuple[Callable[[Path], None], str]] = [
        (cut, "is truncated: needs"),
        (empty, "is truncated: needs at least 8 bytes, has 0"),
        (no_file, "cannot be read: Is a directory"),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (garbled, "is not valid JSON"),
    ]
    async with one_node(etcd) as running:
        well = await running.assign("well", llama)
        for fault, said in faults:
            folder = tmp_path / fault.__name__
            shutil.copytree(tied_llama, folder)
            name = fault.__name__.replace("_", "-")
            whole = inspect(folder)
            shard = shard_of(folder)
            fault(shard)
            bad = await running.assign(name, folder, ends=(4,), found=whole)
            await running.is_in(bad, "FAILED")
            assert running.details[bad].startswith(shard.name)
            assert said in running.details[bad]
            assert str(tmp_path) not in running.details[bad]
            assert running.states[bad] == ["LOADING", "FAILED"]
            assert running.node.find(bad) is None
        await running.is_in(well, "READY")
        assert running.states[well] == ["LOADING", "READY"]
        # Repaired, and asked for again as a registry does after a while: it serves.
        await running.unassign(bad)
        await until(lambda: running.states[bad][-1] == "GONE")
        shutil.copy(shard_of(tied_llama), shard)
        await running.assign(name, folder, ends=(4,))
        await running.is_in(bad, "READY")
        assert running.node._hosting._free_bytes() > 0


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that has `small/model`, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with small_hub(llama, "small/model") as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        yield


def test_a_disk_that_is_full_is_named_and_found_again_when_it_is_not(hub: None) -> None:
    found = inspect_source("small/model")
    spec = ModelSpec(name="m", source="small/model", revision=found.revision, task=found.task)
    assignment = Assignment(partition=Partition(first_layer=0, end_layer=2), revision=spec.revision)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Whatever this process writes beyond that fails, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceExhausted, match="cannot be stored: File too large"):
            load_assigned(spec, assignment, "cpu", 2**30, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_assigned(spec, assignment, "cpu", 2**30, False).end_layer == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(13, "Permission denied", "/home/me/secret/model.safetensors"),
            "model.safetensors: Permission denied",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (CheckpointError("cannot open /a/b/c.json: gone"), "cannot open c.json: gone"),
        (ResourceExhausted("layers 0..3 need 5 bytes"), "layers 0..3 need 5 bytes"),
        (MemoryError(), "not enough memory to load it"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
            "not enough memory to load it",
        ),
        (ValueError("two\nlines"), "ValueError: two"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 9999), ("RuntimeError: " + "x" * 9999)[:300]),
    ],
)
def test_what_is_told_is_one_line_without_paths(error: Exception, said: str) -> None:
    assert told(error) == said


def test_only_paths_lose_their_beginning() -> None:
    assert without_paths("3/4 of a/b at /x/y/z.bin, '/u/v w'") == "3/4 of a/b at z.bin, 'v w'"
