"""The semantic service's doors: bad input is said by its field, and the layer lives on."""

import random

import pytest
from stagemesh.services.cache.semantic.file import open_behind
from stagemesh.services.cache.semantic.layer import SemanticLayer
from stagemesh.services.cache.semantic.servicer import SemanticServicer
from stagemesh.services.cache.semantic.worker import SemanticWorker

from stagemesh.errors import InvalidArgument
from stagemesh.invalidation import Selector
from stagemesh.v1 import semantic_pb2 as pb
from stagemesh.v1.registry_pb2 import ModelSpec

from .test_layer import scope, vector


def layer():
    return SemanticLayer(max_bytes=2**20, default_ttl_s=60, clock=lambda: 1000.0, rng=random.Random(1))


def find(**more):
    given = {
        "tenant": "t",
        "scope": scope(),
        "partition": b"p" * 32,
        "vector": vector(),
        "text": "What is the capital of France?",
    }
    return pb.SemanticFindRequest(**(given | more))


def keep(**more):
    given = {"scope": scope(), "key": b"k" * 32, "tags": ["model:m", "revision:r1"]} | more
    return pb.SemanticKeepRequest(
        tenant="t", partition=b"p" * 32, vector=vector(), text="What is the capital of France?", **given
    )


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tenant": ""}, "tenant"),
        ({"scope": pb.SemanticScope()}, "scope.model"),
        ({"partition": b"short"}, "partition"),
        ({"vector": b"abc"}, "vector"),
        ({"vector": b"\0\0\xc0\x7f" * 8}, "vector"),
        ({"text": ""}, "text"),
        ({"text": "x" * 5000}, "text"),
    ],
)
async def test_what_is_wrong_is_said_by_its_field(more, field):
    async with SemanticWorker((layer(), None)) as worker:
        door = SemanticServicer(worker)
        with pytest.raises(InvalidArgument) as error:
            await door.Find(find(**more), None)
        assert error.value.field == field
        assert (await door.Keep(keep(), None)).kept
        assert (await door.Find(find(), None)).key == b"k" * 32


async def test_a_verdict_about_nothing_is_refused():
    async with SemanticWorker((layer(), None)) as worker:
        door = SemanticServicer(worker)
        request = pb.SemanticJudgeRequest(
            tenant="t", scope=scope(), partition=b"p" * 32, key=b"k" * 32, kind="veto", similarity=0.9
        )
        with pytest.raises(InvalidArgument, match="kind"):
            await door.Judge(request, None)
        request.kind, request.similarity = "same", float("nan")
        with pytest.raises(InvalidArgument, match="similarity"):
            await door.Judge(request, None)
        with pytest.raises(InvalidArgument, match="order"):
            await door.Switch(pb.SemanticSwitchRequest(model="m"), None)
        with pytest.raises(InvalidArgument, match="usage"):
            await door.Count(pb.CacheUsageRequest(usage=[pb.CacheUsage()]), None)


async def test_what_is_no_longer_valid_leaves_and_what_is_left_is_there_after_a_restart(tmp_path):
    first = layer()
    async with SemanticWorker((first, open_behind(tmp_path / "f", first))) as worker:
        door = SemanticServicer(worker)
        await worker.deployed(ModelSpec(name="m", revision="r1"), "m")
        await door.Keep(keep(), None)
        await door.Keep(keep(key=b"n" * 32, tags=["model:m", "revision:r1", "namespace:n"]), None)
        await worker.dropped(Selector(tags=frozenset({"namespace:n"})))
    second = layer()
    async with SemanticWorker((second, open_behind(tmp_path / "f", second))) as worker:
        door = SemanticServicer(worker)
        assert len(second.rows) == 1
        assert (await door.Find(find(), None)).key == b"k" * 32
        await worker.deployed(ModelSpec(name="m", revision="r2"), "m")
        assert not (await door.Find(find(), None)).key
        await door.Keep(keep(tags=["model:m", "revision:r2"]), None)
        await worker.deployed(None, "m")
        assert not (await door.Find(find(), None)).key
