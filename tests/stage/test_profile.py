"""Profiles: measured on real layers, kept and checked, made by a node between other passes, used by the planner."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from stagemesh.services.stage import profile as command
from stagemesh.services.stage import profile_node
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.kv import KVPool
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.profile_links import measure_links
from stagemesh.services.stage.profile_machine import disk_gbps, hardware
from stagemesh.services.stage.profile_node import Profiles
from stagemesh.services.stage.profile_passes import ROWS, TRIES, best_ms, passes
from stagemesh.services.stage.replica import Replica

from stagemesh import records
from stagemesh.checkpoint import inspect
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import GrpcServer
from stagemesh.planning.live import from_records, links_from
from stagemesh.planning.profile import Hardware, Profile, load, save, shape_of
from stagemesh.v1.registry_pb2 import LinkProfile, ModelSpec, NodeRecord
from tests.checkpoints import make_llama
from tests.library.etcd_process import EtcdProcess

KNOWN = Profile(key="k", shape="s", layer_ms={1: 0.5, 8: 0.7}, overhead_ms=0.1)


# ---- the file ----


def test_a_profile_is_kept_and_found_again(tmp_path: Path) -> None:
    assert load(tmp_path / "none", "k") is None
    assert save(tmp_path / "new", KNOWN)
    assert load(tmp_path / "new", "k") == KNOWN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["k.json"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        KNOWN.model_copy(update={"key": "other"}).model_dump_json(),
        KNOWN.model_dump_json().replace("0.5", "-0.5"),
        KNOWN.model_dump_json().replace("0.5", "1e999"),
        KNOWN.model_dump_json().replace('"shape"', '"form"'),
        " " * 100_000,
    ],
)
def test_a_file_that_is_not_one_is_ignored_with_a_line(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "k.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, "k") is None
    assert "profile.ignored k.json" in caplog.text
    assert save(tmp_path, KNOWN)
    assert load(tmp_path, "k") == KNOWN


def test_a_folder_that_cannot_be_written_is_a_line_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert not save(tmp_path / "file" / "profiles", KNOWN)
    assert "profile.not_kept" in caplog.text


def test_the_key_changes_with_model_hardware_threads_and_versions(tmp_path: Path, llama: Path) -> None:
    shape = shape_of(inspect(llama))
    assert shape == shape_of(inspect(make_llama(tmp_path / "copy")))
    assert shape != shape_of(inspect(make_llama(tmp_path / "fewer", layers=4)))
    assert shape != shape_of(inspect(llama), "BF16")
    here = Hardware("cpu", "2 CPUs", 2, True, ("1", "2"))
    others = [
        replace(here, device="cuda"),
        replace(here, device_name="4 CPUs"),
        replace(here, threads=1),
        replace(here, fast=False),
        replace(here, versions=("1", "3")),
    ]
    assert len({one.key(shape) for one in (here, *others)} | {here.key("other")}) == 7


# ---- measuring ----


def test_all_rows_are_measured_and_nothing_stays_reserved(llama: Path) -> None:
    model = load_partition(llama, inspect(llama), task="generate", first=2, end=5)
    pool = KVPool(2**22, model.kv_layout)
    found = best_ms(model, pool, ROWS, budget_s=5.0)
    assert list(found) == list(ROWS)
    assert all(0 < ms < 5000 for ms in found.values())
    assert pool.used_bytes == 0


FAMILIES = {
    "bert": (
        transformers.BertModel,
        transformers.BertConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=100
        ),
    ),
    "vit": (
        transformers.ViTModel,
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=16,
        ),
    ),
    # State of its own, one session at a time.
    "mamba": (
        transformers.MambaForCausalLM,
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=100, state_size=8),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_without_sessions_and_with_states_of_their_own_are_measured_too(
    family: str, tmp_path: Path
) -> None:
    kind, config = FAMILIES[family]
    kind(config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    for first in range(3):
        model = load_partition(tmp_path, found, task=found.task, first=first, end=first + 1)
        pool = KVPool(2**24, model.kv_layout)
        assert list(best_ms(model, pool, ROWS, budget_s=5.0)) == list(ROWS)
        assert pool.used_bytes == 0


def test_a_budget_ends_it_after_the_first_rows(llama: Path) -> None:
    model = load_partition(llama, inspect(llama), task="generate", first=0, end=2)
    assert list(best_ms(model, KVPool(2**22, model.kv_layout), ROWS, budget_s=0.0)) == [1]


def test_rows_for_which_there_is_no_room_are_left_out(llama: Path) -> None:
    model = load_partition(llama, inspect(llama), task="generate", first=0, end=2)
    pool = KVPool(10 * 16 * model.kv_layout.token_bytes, model.kv_layout)
    assert list(best_ms(model, pool, ROWS, budget_s=5.0)) == [1, 8]
    with passes(model, pool, 32) as none:
        assert none is None
    assert pool.used_bytes == 0


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_taken_from_the_middle_and_only_where_it_may_be_cut(llama: Path, layers: int) -> None:
    found = inspect(llama)
    first, end = command.span(found, layers)
    assert end - first == layers
    assert 0 < first < end < found.layers
    # Layers 1..6 share something.
    tied = replace(found, cuts=(1, 7))
    assert command.span(tied, layers) == ((0, 1) if layers == 1 else (1, 7))
    assert command.span(replace(found, cuts=()), layers) == (0, 8)


def test_two_sizes_part_layers_from_overhead() -> None:
    layer_ms, overhead = command._apart([(1.0, {1: 1.5, 8: 2.5}), (3.0, {1: 3.5, 8: 6.5})])
    assert layer_ms == pytest.approx({1: 1.0, 8: 2.0})
    assert overhead == pytest.approx(0.5)
    # The larger one came out no slower: all that is known is what it took for each of its layers.
    layer_ms, overhead = command._apart([(1.0, {1: 3.0}), (3.0, {1: 3.0})])
    assert layer_ms == {1: 1.0}
    assert overhead == 2.0


def test_the_command_prints_what_the_planner_reads_and_keeps_it(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stagemesh.planning.nodes_file import read_nodes

    words = [str(llama), "--device", "cpu", "--data-dir", str(tmp_path)]
    assert command.main(words) == 0
    found = read_nodes(capsys.readouterr().out)
    assert set(found.nodes[0].speed.layer_ms) == set(ROWS)
    assert command.main([*words, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["cached"]
    assert again["profile"]["layer_ms"]["1"] == pytest.approx(found.nodes[0].speed.layer_ms[1], abs=1e-4)
    assert command.main([str(tmp_path / "none")]) == 1
    assert "no checkpoint folder" in capsys.readouterr().err


def test_the_disk_is_read_only_where_there_are_weights(llama: Path, tmp_path: Path) -> None:
    assert disk_gbps(tmp_path) == 0
    assert disk_gbps(llama) > 0


# ---- a node ----


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    process = EtcdProcess(tmp_path / "etcd")
    await process.start()
    client = Etcd(process.address)
    await client.start()
    yield client
    await client.close()
    await process.stop()


class Host:
    """A replica on a node's record, and how often the record was announced."""

    def __init__(self, llama: Path, etcd: Etcd, folder: Path) -> None:
        found = inspect(llama)
        model = load_partition(llama, found, task="generate", first=0, end=8)
        self.replica = Replica("r", "m", 0, model, 2**22)
        self.record = NodeRecord(node_id="me", device="cpu")
        self.spec = ModelSpec(name="m", source=str(llama))
        self.shape = shape_of(found)
        self.key = hardware("cpu", True).key(self.shape)
        self.announced = 0
        self.profiles = Profiles(self.record, etcd, self._announce, True, folder)

    async def _announce(self) -> None:
        self.announced += 1

    async def learn(self) -> None:
        announced = self.announced
        self.profiles.learn(self.replica, self.spec)
        await until(lambda: self.announced > announced)


@asynccontextmanager
async def host(llama: Path, etcd: Etcd, folder: Path) -> AsyncIterator[Host]:
    one = Host(llama, etcd, folder)
    try:
        yield one
    finally:
        await one.profiles.forget("r")
        await one.replica.close()


async def test_a_node_learns_once_keeps_it_and_knows_its_neighbours(
    llama: Path, etcd: Etcd, tmp_path: Path
) -> None:
    neighbour = GrpcServer("127.0.0.1", 0)
    address = f"127.0.0.1:{await neighbour.start([])}"
    for name, where in (("me", "127.0.0.1:1"), ("other", address), ("gone", "127.0.0.1:1")):
        record = NodeRecord(node_id=name, address=where)
        await etcd.put(records.node_key(name), records.to_json(record))
    await etcd.put(records.node_key("broken"), b"{")
    async with host(llama, etcd, tmp_path) as one:
        await one.learn()
        kept = load(tmp_path / "profiles", one.key)
        assert kept is not None
        assert set(kept.layer_ms) == set(ROWS)
        assert [dict(profile.layer_ms) for profile in one.record.layer_profiles] == [
            {rows: pytest.approx(ms, rel=1e-5) for rows, ms in kept.layer_ms.items()}
        ]
        assert set(one.record.links) == {"other"}
        assert one.record.links["other"].rtt_ms > 0
        assert one.record.disk_gbps > 0
        assert one.replica.pool.used_bytes == 0
        # Known already: nothing is announced again.
        await one.profiles._learn(one.replica, one.spec)
        assert one.announced == 1
    await neighbour.stop(0)


async def test_a_kept_profile_is_used_and_a_broken_one_made_anew(
    llama: Path, etcd: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(llama, etcd, tmp_path) as one:
        save(
            tmp_path / "profiles", Profile(key=one.key, shape=one.shape, layer_ms={1: 123.0}, overhead_ms=0.0)
        )
        await one.learn()
        assert dict(one.record.layer_profiles[0].layer_ms) == {1: 123.0}
    async with host(llama, etcd, tmp_path) as one:
        (tmp_path / "profiles" / f"{one.key}.json").write_text("nonsense")
        await one.learn()
        assert set(one.record.layer_profiles[0].layer_ms) == set(ROWS)
        assert "profile.ignored" in caplog.text


async def test_nothing_is_measured_nor_reserved_while_sessions_are_served(
    llama: Path, etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_node, "_POLL_S", 0.01)
    async with host(llama, etcd, tmp_path) as one:
        busy: dict[int, object] = {1: object()}
        monkeypatch.setattr(one.replica, "sessions", busy)
        one.profiles.learn(one.replica, one.spec)
        await asyncio.sleep(0.5)
        assert one.replica.pool.used_bytes == 0
        assert one.replica.engine.begun == 0
        busy.clear()
        await until(lambda: one.announced)
        # One to warm up and a few more, for each number of rows.
        assert 2 * len(ROWS) <= one.replica.engine.begun <= (TRIES + 1) * len(ROWS)


async def test_cancelled_within_a_pass_it_gives_back_what_the_pass_writes_to_only_after_its_end(
    llama: Path, etcd: Etcd, tmp_path: Path
) -> None:
    started, go_on = threading.Event(), threading.Event()
    async with host(llama, etcd, tmp_path) as one:
        forward = one.replica.model.forward

        def slow(batch: Batch) -> Activations:
            started.set()
            go_on.wait(30)
            return forward(batch)

        one.replica.model.forward = slow  # type: ignore[method-assign]
        one.profiles.learn(one.replica, one.spec)
        await until(started.is_set)
        closing = asyncio.create_task(one.profiles.forget("r"))
        await asyncio.sleep(0.1)
        assert one.replica.pool.used_bytes > 0
        assert not closing.done()
        go_on.set()
        await closing
        assert one.replica.pool.used_bytes == 0
        assert not one.announced


async def test_links_are_measured_and_those_that_do_not_answer_left_out() -> None:
    server = GrpcServer("127.0.0.1", 0)
    address = f"127.0.0.1:{await server.start([])}"
    found = await measure_links([("a", address), ("b", "127.0.0.1:1")])
    await server.stop(0)
    assert set(found) == {"a"}
    assert 0 < found["a"].rtt_ms < 2000
    assert found["a"].gbit >= 0


# ---- the planner ----


def test_the_planner_takes_what_was_measured_for_the_model_and_rates_else() -> None:
    record = NodeRecord(node_id="a", device="cpu", memory_bytes=100, gflops=5, memory_gbps=3, zone="x")
    record.layer_profiles.append(KNOWN.record())
    measured = from_records([record], "s")[0][0].speed
    assert measured.layer_ms == {1: pytest.approx(0.5), 8: pytest.approx(0.7)}
    assert measured.overhead_ms == pytest.approx(0.1)
    assert from_records([record], "other")[0][0].speed.layer_ms == {}
    bare = NodeRecord(node_id="b", memory_bytes=100)
    assert from_records([bare], "s")[1]
    bare.layer_profiles.append(KNOWN.record())
    assert not from_records([bare], "s")[1]


def test_links_of_zones_are_the_median_of_their_nodes() -> None:
    nodes = [NodeRecord(node_id=name, zone=zone) for name, zone in (("a", "x"), ("b", "x"), ("c", "y"))]
    nodes[0].links["b"].CopyFrom(LinkProfile(rtt_ms=1, gbit=10))
    nodes[0].links["c"].CopyFrom(LinkProfile(rtt_ms=20, gbit=1))
    nodes[2].links["a"].CopyFrom(LinkProfile(rtt_ms=30, gbit=0))
    nodes[2].links["left"].CopyFrom(LinkProfile(rtt_ms=99))
    found = links_from(nodes)
    assert found.between("x", "x").rtt_ms == 1
    assert found.between("x", "y").rtt_ms == found.between("y", "x").rtt_ms == 25
    assert found.between("x", "y").gbit == 1
    assert found.between("y", "y").rtt_ms == 20
    assert links_from([]).between("x", "y").rtt_ms == 0


async def until(condition: Callable[[], object], within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)
