"""Any named tensors through the core: scattered as samples, gathered in order, parts that fail tried elsewhere."""

import asyncio
import time

import numpy as np
import pytest
from stagemesh.services.router.forms import WHOLE_ROWS
from stagemesh.services.router.scatter import plan_samples

from stagemesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from stagemesh.tensor import NUMPY_DTYPES, from_numpy, to_numpy
from stagemesh.v1.inference_pb2 import CacheStatus, InferRequest
from stagemesh.v1.registry_pb2 import RowKind, TensorSpec
from stagemesh.v1.tensor_pb2 import Tensor

from .conftest import eventually

ROW = 512  # float32 of a row: 4 KiB with the rest, so that four rows are worth a micro-batch


def spec(*inputs, **extra):
    """A model whose outputs are its inputs, called `NAME_out`."""
    outputs = [
        TensorSpec(name=f"{each.name}_out", dtypes=each.dtypes[:1], shape=each.shape) for each in inputs
    ]
    return {"inputs": inputs, "outputs": outputs, "rows": RowKind.ROW_KIND_SAMPLE, **extra}


ROWS = TensorSpec(name="x", dtypes=["F32"], shape=[-1, ROW])


def numbered(rows):
    x = np.zeros((rows, ROW), np.float32)
    x[:, 0] = np.arange(rows)
    return x


def ask(outputs=(), **arrays):
    return InferRequest(
        model="m", inputs=[from_numpy(name, array) for name, array in arrays.items()], outputs=outputs
    )


async def test_inputs_of_any_rank_and_dtype_come_back_in_order(mesh):
    core = await mesh.start(
        task="tensor",
        spec=spec(
            TensorSpec(name="image", dtypes=["U8"], shape=[-1, 3, -1, 5]),
            TensorSpec(name="half", dtypes=["F16"], shape=[-1]),
            TensorSpec(name="brain", dtypes=["BF16"], shape=[-1, 2]),
            TensorSpec(name="flag", dtypes=["BOOL"], shape=[-1, 1, 1, 1, 2]),
            TensorSpec(name="id", dtypes=["I16"], shape=[-1, 1]),
            TensorSpec(name="weight", dtypes=["F64"], shape=[-1, 4], optional=True),
        ),
    )
    rng = np.random.default_rng(0)
    rows = 900
    arrays = {
        "image": rng.integers(0, 255, (rows, 3, 50, 5)).astype(np.uint8),
        "half": rng.normal(size=rows).astype(np.float16),
        "flag": rng.integers(0, 2, (rows, 1, 1, 1, 2)).astype(bool),
        "id": np.arange(rows, dtype=np.int16)[:, None],
    }
    bits = rng.integers(0, 2**16, (rows, 2)).astype(np.uint16)
    request = ask(**arrays)
    request.inputs.append(Tensor(name="brain", dtype="BF16", shape=bits.shape, data=bits.tobytes()))
    request.outputs.extend(f"{name}_out" for name in (*arrays, "brain"))
    answer = await core.infer(request, core.context({}))
    *outputs, brain = answer.outputs
    for output, (name, array) in zip(outputs, arrays.items(), strict=True):
        assert output.name == f"{name}_out"
        np.testing.assert_array_equal(to_numpy(output), array)
        assert to_numpy(output).dtype == array.dtype
    assert (brain.dtype, list(brain.shape), brain.data) == ("BF16", [rows, 2], bits.tobytes())
    parts = [request for stage in mesh.stages.values() for request in stage.forwarded]
    assert len(parts) >= 16, "both replicas of two stages have work"
    assert all(len(stage.forwarded) > 3 for stage in mesh.stages.values())
    assert {each.dtype for part in parts for each in part.inputs} == {"U8", "F16", "BF16", "BOOL", "I16"}


async def test_answers_in_any_order_are_put_in_order(mesh):
    core = await mesh.start({"0a": "shuffle", "0b": "shuffle"}, task="tensor", spec=spec(ROWS))
    x = numbered(300)
    answer = await core.infer(ask(x=x), core.context({}))
    np.testing.assert_array_equal(to_numpy(answer.outputs[0]), x)
    assert sum(len(stage.forwarded) for stage in mesh.stages.values()) == 16


async def test_a_request_like_one_before_is_cut_like_it(mesh):
    core = await mesh.start(task="tensor", spec=spec(ROWS))
    for turn in range(2):
        x = numbered(WHOLE_ROWS) + turn
        answer = await core.infer(ask(x=x), core.context({}))
        np.testing.assert_array_equal(to_numpy(answer.outputs[0]), x)
    parts = sorted(len(each.lengths) for stage in mesh.stages.values() for each in stage.forwarded)
    assert len(parts) > 2
    assert parts[::2] == parts[1::2]


async def test_all_outputs_by_default_and_the_ones_asked_for_in_their_order(mesh):
    both = spec(ROWS, TensorSpec(name="y", dtypes=["I32"], shape=[-1]))
    core = await mesh.start(task="tensor", spec=both)
    x, y = numbered(2), np.arange(2, dtype=np.int32)
    whole = await core.infer(ask(y=y, x=x), core.context({}))
    assert [each.name for each in whole.outputs] == ["x_out", "y_out"]
    swapped = await core.infer(ask(["y_out", "x_out"], y=y, x=x), core.context({}))
    assert [each.name for each in swapped.outputs] == ["y_out", "x_out"]
    np.testing.assert_array_equal(to_numpy(swapped.outputs[0]), y)


@pytest.mark.parametrize(
    ("given", "native"), [("F16", "F32"), ("I32", "I64"), ("F32", "U8"), ("BOOL", "F64")]
)
async def test_other_dtypes_become_the_native_one(mesh, given, native):
    taken = TensorSpec(name="x", dtypes=[native, *NUMPY_DTYPES], shape=[-1])
    core = await mesh.start({"0a": "good"}, stages=1, task="tensor", spec=spec(taken))
    answer = await core.infer(ask(x=np.array([0, 1]).astype(NUMPY_DTYPES[given])), core.context({}))
    assert answer.outputs[0].dtype == native
    assert to_numpy(answer.outputs[0]).tolist() == [0, 1]


async def test_a_fixed_batch_is_never_cut(mesh):
    fixed = TensorSpec(name="x", dtypes=["F32"], shape=[300, ROW])
    core = await mesh.start(task="tensor", spec=spec(fixed))
    answer = await core.infer(ask(x=numbered(300)), core.context({}))
    np.testing.assert_array_equal(to_numpy(answer.outputs[0]), numbered(300))
    assert sum(len(stage.forwarded) for stage in mesh.stages.values()) == 1
    with pytest.raises(InvalidArgument, match="batches of exactly 300, not of 299") as caught:
        await core.infer(ask(x=numbered(299)), core.context({}))
    assert caught.value.field == "inputs[0].shape"


@pytest.mark.parametrize("mode", ["gone", "fault", "too few outputs", "cut payload"])
async def test_a_part_that_fails_is_answered_by_another_route(mesh, mode):
    core = await mesh.start({"0a": "good", "0b": mode}, task="tensor", spec=spec(ROWS), policy="round_robin")
    x = numbered(128)
    answer = await core.infer(ask(x=x), core.context({}))
    np.testing.assert_array_equal(to_numpy(answer.outputs[0]), x)
    assert mesh.stages["0b"].forwarded
    sessions = [each.session for stage in mesh.stages.values() for each in stage.forwarded]
    assert len(set(sessions)) == len(sessions), "a part that is tried again is a session of its own"


async def test_what_every_replica_gets_wrong_names_its_rows_and_stops_the_others(mesh):
    core = await mesh.start({"0a": "bad row 70", "0b": "bad row 70"}, task="tensor", spec=spec(ROWS))
    parts = plan_samples(128, ROW * 4, 2, 2)
    guilty = next(rows for rows in parts if 70 in rows)
    with pytest.raises(InternalError) as caught:
        await core.infer(ask(x=numbered(128)), core.context({}))
    assert f"rows {guilty.start} to {guilty.stop - 1} of 128" in caught.value.message
    tried = [
        each
        for stage in mesh.stages.values()
        for each in stage.forwarded
        if 70 in to_numpy(each.inputs[0])[:, 0]
    ]
    assert len(tried) == 2, "once more elsewhere, then no more"
    assert "active=0" in repr(core)


@pytest.mark.parametrize("streams", [True, False])
async def test_the_others_are_cancelled_on_their_stages(mesh, streams):
    core = await mesh.start({"0a": "hold", "0b": "hold"}, task="tensor", spec=spec(ROWS))
    if not streams:
        for stage in mesh.stages.values():
            core.channels.forward(stage.address)._ask_again_at = time.monotonic() + 60
    asked = asyncio.create_task(core.infer(ask(x=numbered(256)), core.context({})))
    count = lambda: sum(len(stage.forwarded) for stage in mesh.stages.values())  # noqa: E731
    await eventually(lambda: count() == 8)
    assert sum(stage.unary for stage in mesh.stages.values()) == (0 if streams else 8)
    held = {each.session for stage in mesh.stages.values() for each in stage.forwarded}
    for stage in mesh.stages.values():
        stage.mode = "refuse"
    # One part fails for good: it leaves its held session for a stage that refuses the next one.
    first = mesh.stages["0a"]
    await first.door.stop(0)
    with pytest.raises(InvalidArgument, match=r"x: is not .*\(rows? .* of 256\)") as caught:
        await asked
    assert caught.value.field == "x"
    second = mesh.stages["0b"]
    await eventually(lambda: second.cancelled == sum(each.session in held for each in second.forwarded) > 0)
    sent = {to_numpy(each.inputs[0])[0, 0] for stage in mesh.stages.values() for each in stage.forwarded}
    assert len(sent) < len(plan_samples(256, ROW * 4, 2, 2)), "what had not begun is not sent any more"
    assert core.loads.counts("0a")[1] == core.loads.counts("0b")[1] == 0


async def test_a_refusal_of_the_input_is_never_tried_again(mesh):
    core = await mesh.start({"0a": "refuse", "0b": "refuse"}, task="tensor", spec=spec(ROWS))
    with pytest.raises(InvalidArgument) as caught:
        await core.infer(ask(x=numbered(2)), core.context({}))
    assert caught.value.field == "x"
    assert sum(len(stage.forwarded) for stage in mesh.stages.values()) == 1


async def test_full_stages_and_deadlines(mesh):
    core = await mesh.start({"0a": "no memory", "0b": "no memory"}, task="tensor", spec=spec(ROWS))
    with pytest.raises(ResourceExhausted, match=r"rows? .* of 64") as caught:
        await core.infer(ask(x=numbered(64)), core.context({}))
    assert caught.value.retry_after_s
    for stage in mesh.stages.values():
        stage.mode = "hold"
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await core.infer(ask(x=numbered(64)), core.context({}, timeout_s=0.3))
    assert time.monotonic() - began < 5
    await eventually(lambda: "active=0" in repr(core))


async def test_no_other_route_is_a_clear_error(mesh):
    core = await mesh.start({"0a": "break first"}, task="tensor", stages=2, spec=spec(ROWS))
    with pytest.raises(Unavailable, match=r"broke at .*: .*lost.*\(rows? .* of 64\)"):
        await core.infer(ask(x=numbered(64)), core.context({}))


async def test_an_answer_beyond_one_message_is_refused_however_it_is_cut(mesh):
    unknown = spec(ROWS)
    unknown["outputs"] = [TensorSpec(name="x_out", dtypes=["F32"], shape=[-1, -1])]
    core = await mesh.start(task="tensor", spec=unknown, max_message_bytes=2**20)
    many = 2**20 // (4 * ROW) - 32
    await core.infer(ask(x=numbered(many)), core.context({}))
    core = await mesh.start(task="tensor", spec=unknown, max_message_bytes=2**19 + 2**16)
    with pytest.raises(OutOfRange, match="more than the 524288 bytes") as caught:
        await core.infer(ask(x=numbered(many)), core.context({}))
    assert caught.value.field == "inputs"


async def test_dtype_shape_and_bytes_are_in_the_key_of_the_cache(mesh):
    taken = TensorSpec(name="x", dtypes=["F32", "I32"], shape=[-1, -1])
    core = await mesh.start(task="tensor", cache="good", spec=spec(taken))
    zeros = np.zeros((2, 6), np.float32)
    seen = []
    for array in (zeros, zeros.reshape(3, 4), zeros.view(np.int32), zeros + 1, zeros):
        answer = await core.infer(ask(x=array), core.context({}))
        seen.append(answer.cache)
        assert to_numpy(answer.outputs[0]).shape == array.shape
        await eventually(lambda: mesh.cache.stored.is_set())
    assert seen == [CacheStatus.CACHE_STATUS_MISS] * 4 + [CacheStatus.CACHE_STATUS_HIT]
