import asyncio

import numpy as np
import pytest
from stagemesh.services.router.admission.retry_budget import RETRY_SHARE
from stagemesh.services.router.scatter import plan

from stagemesh.errors import FailedPrecondition, InternalError, InvalidArgument, OutOfRange, Unavailable
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1.inference_pb2 import CacheStatus, EmbedRequest, InferRequest, TokenIds

RNG = np.random.default_rng(1)


def batch(rows, width):
    lengths = RNG.integers(1, width + 1, rows)
    mask = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)
    ids = RNG.integers(1, 100, (rows, width)) * mask
    return ids, mask


def ask(ids, mask=None, outputs=()):
    inputs = [from_numpy("input_ids", ids)]
    if mask is not None:
        inputs.append(from_numpy("attention_mask", mask))
    return InferRequest(model="m", inputs=inputs, outputs=outputs)


async def test_a_large_ragged_batch_comes_back_in_order(mesh):
    core = await mesh.start(task="embed")
    ids, mask = batch(300, 17)
    answer = await core.infer(ask(ids, mask, ["last_hidden_state", "sentence_embedding"]), core.context({}))
    states, sentences = (to_numpy(tensor) for tensor in answer.outputs)
    np.testing.assert_array_equal(sentences, np.repeat(ids.sum(1, dtype=np.float32)[:, None], 4, 1))
    np.testing.assert_array_equal(states, np.repeat(ids.astype(np.float32)[:, :, None], 4, 2))
    assert (answer.model, answer.revision) == ("m", "r1")
    assert len(answer.route) == 2
    used = [len(stage.forwarded) for stage in mesh.stages.values()]
    assert sum(used) == len(plan([int(length) for length in mask.sum(1)], 2, 2)) > 5
    assert all(used), "micro-batches travel over more than one route"
    assert core.loads.counts("0a")[1] == core.loads.counts("0b")[1] == 0


async def test_a_batch_that_goes_as_one_is_padded_again(mesh):
    core = await mesh.start(task="embed")
    ids, mask = np.array([[5, 0, 0], [6, 7, 8]]), np.array([[1, 0, 0], [1, 1, 1]])
    for _ in range(2):
        answer = await core.infer(ask(ids, mask, ["last_hidden_state"]), core.context({}))
        (states,) = (to_numpy(tensor) for tensor in answer.outputs)
        np.testing.assert_array_equal(states, np.repeat(ids.astype(np.float32)[:, :, None], 4, 2))
    assert sum(len(stage.forwarded) for stage in mesh.stages.values()) == 2


async def test_each_request_brings_its_share_of_a_retry_and_no_more(mesh):
    core = await mesh.start(task="embed")
    for _ in range(3):
        await core.infer(ask(*batch(4, 5)), core.context({}))
    await asyncio.sleep(0)
    assert core._dispatch._attempts._budgets["m"]._earned == pytest.approx(3 * RETRY_SHARE, rel=0.1)


async def test_the_cache_answers_the_second_time_and_never_another_tenant(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: one\nk2: two\n")
    core = await mesh.start(task="embed", cache="good", api_keys=keys)
    ids, mask = batch(3, 5)
    one, two = ({"authorization": f"Bearer {key}"} for key in ("k1", "k2"))
    first = await core.infer(ask(ids, mask), core.context(one))
    await mesh.cache.stored.wait()
    second = await core.infer(ask(ids, mask), core.context(one))
    other = await core.infer(ask(ids, mask), core.context(two))
    statuses = [first.cache, second.cache, other.cache]
    assert statuses == [
        CacheStatus.CACHE_STATUS_MISS,
        CacheStatus.CACHE_STATUS_HIT,
        CacheStatus.CACHE_STATUS_MISS,
    ]
    assert first.outputs == second.outputs == other.outputs


async def test_embeddings_of_texts_and_of_tokens(mesh):
    core = await mesh.start(task="embed")
    texts = await core.embed(EmbedRequest(model="m", texts=["w1 w2", "w3"]), core.context({}))
    tokens = await core.embed(
        EmbedRequest(model="m", tokens=[TokenIds(ids=[1, 2]), TokenIds(ids=[3])]), core.context({})
    )
    assert to_numpy(texts.embeddings).tolist() == [[3.0] * 4, [3.0] * 4]
    assert texts.embeddings == tokens.embeddings
    assert texts.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (EmbedRequest(model="m"), InvalidArgument),
        (EmbedRequest(model="m", texts=[""]), InvalidArgument),
        (EmbedRequest(model="m", texts=["a"], tokens=[TokenIds(ids=[1])]), InvalidArgument),
        (EmbedRequest(model="m", tokens=[TokenIds()]), InvalidArgument),
        (EmbedRequest(model="m", tokens=[TokenIds(ids=[100])]), InvalidArgument),
        (EmbedRequest(model="m", tokens=[TokenIds(ids=[1] * 65)]), OutOfRange),
    ],
)
async def test_bad_embeddings(mesh, request_, error):
    core = await mesh.start(task="embed")
    with pytest.raises(error):
        await core.embed(request_, core.context({}))


async def test_a_generating_model_does_not_embed(mesh):
    core = await mesh.start()
    with pytest.raises(FailedPrecondition):
        await core.embed(EmbedRequest(model="m", texts=["a"]), core.context({}))


async def test_one_broken_replica_does_not_fail_a_batch(mesh):
    core = await mesh.start({"0a": "good", "0b": "good"}, task="embed")
    await mesh.stages["0b"].door.stop(0)
    ids, mask = batch(400, 3)
    answer = await core.infer(ask(ids, mask), core.context({}))
    assert to_numpy(answer.outputs[0])[:, 0].tolist() == ids.sum(1).tolist()


async def test_garbage_from_a_stage(mesh):
    core = await mesh.start({"0a": "missing row"}, task="embed")
    ids, mask = batch(3, 5)
    with pytest.raises(InternalError, match="rows were expected"):
        await core.infer(ask(ids, mask), core.context({}))
    mesh.stages["0a"].mode = "break first"
    with pytest.raises(Unavailable, match="broke at replica 1"):
        await core.infer(ask(ids, mask), core.context({}))
    assert "active=0" in repr(core)
