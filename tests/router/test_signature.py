"""A model's lists of inputs and outputs, and requests checked by them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.micro_batch import output_bytes
from stagemesh.services.router.oip.metadata import model_metadata
from stagemesh.services.router.signature import signature_of
from stagemesh.services.router.validate_tensors import check_infer

from stagemesh.errors import FailedPrecondition, InvalidArgument, OutOfRange
from stagemesh.tensor import ITEM_BYTES, from_numpy
from stagemesh.v1.inference_pb2 import InferRequest
from stagemesh.v1.registry_pb2 import RowKind, TensorSpec
from stagemesh.v1.tensor_pb2 import Tensor

from .specs import model

SAMPLE, TOKEN = RowKind.ROW_KIND_SAMPLE, RowKind.ROW_KIND_TOKEN


def rule(name, dtypes="F32", shape=(-1, 2), **more):
    return TensorSpec(name=name, dtypes=dtypes.split(), shape=shape, **more)


X, Y = rule("x", "F32 F64 BF16 I64"), rule("y", "I32", (-1,), optional=True)


def check(
    *tensors, inputs=(X, Y), outputs=(rule("o"), rule("p")), rows=SAMPLE, wanted=(), limit=2**20, **extra
):
    spec = model(task="tensor", inputs=inputs, outputs=outputs, rows=rows, **extra)
    return check_infer(InferRequest(model="m", inputs=tensors, outputs=wanted), spec, max_output_bytes=limit)


def tensor(name="x", shape=(3, 2), dtype=np.float32, fill=1):
    return from_numpy(name, np.full(shape, fill, dtype))


def test_samples():
    batch = check(tensor("y", (3,), np.int32), tensor())
    assert [(each.name, each.dtype) for each in batch.inputs] == [("x", "F32"), ("y", "I32")]
    assert batch.lengths == [1, 1, 1]
    assert [each.name for each in batch.outputs] == ["o", "p"]
    assert not batch.by_token
    assert not batch.fixed
    assert check(tensor(dtype=np.float64)).inputs[0].dtype == "F32"
    # An id beyond the vocabulary is one only where text is.
    assert check(tensor(fill=500), inputs=[rule("input_ids"), X][1:], vocab_size=100)
    ids = rule("input_ids", "I64", (-1,))
    assert check(from_numpy("input_ids", np.array([-5, 10**6])), inputs=[ids], vocab_size=100)


BAD = [
    ([tensor(), tensor("y", (2,), np.int32)], "inputs[1].shape"),
    ([tensor("y", (2,), np.int32)], "inputs"),
    ([tensor(shape=(3, 3))], "inputs[0].shape"),
    ([tensor(shape=(3,))], "inputs[0].shape"),
    ([tensor(shape=(3, 2, 1))], "inputs[0].shape"),
    ([tensor(shape=())], "inputs[0].shape"),
    ([tensor(dtype=np.float16)], "inputs[0].dtype"),
    ([tensor(dtype=np.float64, fill=0.1)], "inputs[0].data"),
    ([tensor(dtype=np.int64, fill=2**24 + 1)], "inputs[0].data"),
    ([tensor("z")], "inputs[0].name"),
    ([Tensor(name="x", dtype="F32", shape=[1, 2], data=b"1234")], "inputs[0].data"),
    ([Tensor(name="x", dtype="F32", shape=[2**31, 2])], "inputs[0].shape"),
]


@pytest.mark.parametrize(("tensors", "field"), BAD, ids=[f"{field}-{i}" for i, (_, field) in enumerate(BAD)])
def test_bad_tensors_name_their_field(tensors, field):
    with pytest.raises(InvalidArgument) as caught:
        check(*tensors)
    assert caught.value.field == field


def test_booleans_are_bytes_of_zero_and_one():
    flags = [rule("b", "BOOL", (-1,))]
    good = Tensor(name="b", dtype="BOOL", shape=[3], data=b"\x00\x01\x00")
    assert check(good, inputs=flags).inputs[0].array.tolist() == [False, True, False]
    with pytest.raises(InvalidArgument, match="0 or 1"):
        check(Tensor(name="b", dtype="BOOL", shape=[3], data=b"\x00\x02\x00"), inputs=flags)


def test_sizes_are_checked_before_anything_is_allocated():
    wide = [rule("x", "F64 U8", (-1,))]
    many = Tensor(name="x", dtype="U8", shape=[2000], data=bytes(2000))
    small = [rule("o", "U8", (-1,))]
    assert check(many, inputs=wide, outputs=small, limit=16000)
    with pytest.raises(OutOfRange) as caught:
        check(many, inputs=wide, outputs=small, limit=15999)
    assert caught.value.field == "inputs[0].data"
    big = [rule("o", "F64", (-1, 1000, 1000))]
    with pytest.raises(OutOfRange, match="the answer would take 24000000 bytes"):
        check(tensor(), outputs=big)
    assert check(tensor(), outputs=big, limit=24 * 10**6)


def test_text_with_lists_of_its_own():
    ids, types = (
        rule("input_ids", "I32 I64", (-1, -1)),
        rule("token_type_ids", "I64", (-1, -1), optional=True),
    )
    extra = rule("features", "F16", (-1, -1, 3), optional=True)
    given_ids = from_numpy("input_ids", np.array([[1, 2, 3], [4, 5, 0]]))
    mask = from_numpy("attention_mask", np.array([[1, 1, 1], [1, 1, 0]], np.uint8))
    features = from_numpy("features", np.zeros((2, 3, 3), np.float16))
    outputs = [rule("logits", "F32", (-1, -1, 7), per_token=True), rule("pooled")]
    batch = check(given_ids, mask, features, inputs=[ids, types, extra], outputs=outputs, rows=TOKEN)
    assert batch.lengths == [3, 2]
    assert [(each.name, each.dtype) for each in batch.inputs] == [("input_ids", "I32"), ("features", "F16")]
    assert [each.name for each in batch.outputs] == ["logits"]
    for wrong in (np.array([[1, 100]]), np.array([[-1, 1]])):
        with pytest.raises(InvalidArgument, match="vocabulary") as caught:
            check(from_numpy("input_ids", wrong), inputs=[ids], outputs=outputs, rows=TOKEN)
        assert caught.value.field == "inputs[0].data"
    with pytest.raises(InvalidArgument) as caught:
        check(
            given_ids,
            from_numpy("features", np.zeros((2, 2, 3), np.float16)),
            inputs=[ids, extra],
            rows=TOKEN,
        )
    assert caught.value.field == "inputs[1].shape"


def test_models_that_do_not_say_what_they_take():
    for spec in (
        model(task="tensor"),
        model(task="tensor", inputs=[X]),
        model(task="tensor", inputs=[rule("x", shape=())], outputs=[X], rows=SAMPLE),
        model(task="classify", inputs=[rule("input_ids", "I64", (-1,))], outputs=[X], rows=TOKEN),
    ):
        with pytest.raises(FailedPrecondition):
            signature_of(spec)


def test_rows_by_what_is_taken_where_the_spec_does_not_say():
    assert signature_of(model(task="embed")).by_token
    assert not signature_of(model(task="tensor", inputs=[X], outputs=[X])).by_token


def test_output_sizes():
    outputs = [
        rule("a", "F16", (-1, -1, 5), per_token=True),
        rule("b", "I64", (-1, 2)),
        rule("c", "F32", (-1, -1)),
    ]
    assert output_bytes(outputs, True, 3, 10) == 10 * 5 * 2 + 3 * 2 * 8 + 3 * 4
    assert output_bytes(outputs[:1], False, 3, 3) == 3 * 5 * 2


def test_metadata_is_what_the_lists_say():
    spec = model(
        task="tensor",
        inputs=[rule("x", "BF16 F32", (-1, 3, -1)), Y],
        outputs=[rule("o", "BOOL")],
        rows=SAMPLE,
    )
    said = model_metadata(spec)
    assert [(each.name, each.datatype, list(each.shape)) for each in said.inputs] == [
        ("x", "BF16", [-1, 3, -1]),
        ("y", "INT32", [-1]),
    ]
    assert [(each.name, each.datatype) for each in said.outputs] == [("o", "BOOL")]
    old = model_metadata(model(task="embed"))
    assert [each.name for each in old.inputs] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "text_input",
    ]
    assert [list(each.shape) for each in old.outputs] == [[-1, 4], [-1, -1, 4]]


@given(
    st.sampled_from([*ITEM_BYTES, "I65"]),
    st.lists(st.integers(0, 2**64 - 1), max_size=18),
    st.binary(max_size=32),
    st.sampled_from([SAMPLE, TOKEN]),
)
def test_no_header_does_more_than_raise_our_errors(dtype, shape, data, rows):
    every = rule("x", " ".join(ITEM_BYTES), (-1, -1))
    try:
        check(Tensor(name="x", dtype=dtype, shape=shape, data=data), inputs=[every], rows=rows)
    except (InvalidArgument, OutOfRange):
        pass
