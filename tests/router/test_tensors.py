import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.scatter import (
    MAX_TOKENS,
    PARTS_PER_STAGE,
    WORTH_BYTES,
    WORTH_TOKENS,
    Piece,
    gather,
    pack,
    plan,
    plan_samples,
    wanted_parts,
)
from stagemesh.services.router.validate_tensors import check_infer, mask_lengths

from stagemesh.errors import InternalError, InvalidArgument, OutOfRange
from stagemesh.tensor import from_numpy
from stagemesh.v1.inference_pb2 import InferRequest
from stagemesh.v1.tensor_pb2 import Tensor

from .specs import model

IDS = np.array([[1, 2, 3], [4, 5, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1], [1, 1, 0]], dtype=np.int64)


def check(*tensors, outputs=(), task="embed", limit=2**20, **extra):
    request = InferRequest(model="m", inputs=tensors, outputs=outputs)
    return check_infer(request, model(task=task, **extra), max_output_bytes=limit)


def tensor(name="input_ids", array=IDS, **change):
    made = from_numpy(name, array)
    for field, value in change.items():
        if field == "shape":
            del made.shape[:]
            made.shape.extend(value)
        else:
            setattr(made, field, value)
    return made


def test_a_good_batch():
    batch = check(tensor(), tensor("attention_mask", MASK), tensor("token_type_ids", IDS * 0))
    assert batch.lengths == [3, 2]
    assert [each.name for each in batch.outputs] == ["sentence_embedding"]
    assert [each.name for each in batch.inputs] == ["input_ids", "token_type_ids"]
    assert batch.width == 3
    assert check(tensor(array=IDS.astype(np.int32))).lengths == [3, 3]
    assert [each.name for each in check(tensor(), task="generate").outputs] == ["logits"]


BAD = [
    ([], "inputs"),
    ([tensor("pixels")], "inputs[0].name"),
    ([tensor(), tensor()], "inputs[1].name"),
    ([tensor(array=IDS.astype(np.float32))], "inputs[0].dtype"),
    ([tensor(dtype="I65")], "inputs[0].dtype"),
    ([tensor(array=IDS.reshape(-1))], "inputs[0].shape"),
    ([tensor(array=IDS.reshape(1, 2, 3))], "inputs[0].shape"),
    ([tensor(shape=[0, 3], data=b"")], "inputs[0].shape"),
    ([tensor(shape=[2**32, 2**32])], "inputs[0].shape"),
    ([tensor(shape=[2**31 - 1, 2**31 - 1])], "inputs[0].shape"),
    ([tensor(shape=[2, 4])], "inputs[0].data"),
    ([tensor(data=b"123")], "inputs[0].data"),
    ([tensor(encoding="int8")], "inputs[0].encoding"),
    ([tensor(array=-IDS)], "inputs[0].data"),
    ([tensor(array=IDS * 50)], "inputs[0].data"),
    ([tensor(), tensor("attention_mask", MASK[:1])], "inputs[1].shape"),
    ([tensor(), tensor("attention_mask", MASK * 2)], "inputs[1].data"),
    ([tensor(), tensor("attention_mask", MASK[:, ::-1])], "inputs[1].data"),
    ([tensor(), tensor("attention_mask", MASK * 0)], "inputs[1].data"),
    ([tensor(), tensor("token_type_ids", IDS * -1)], "inputs[1].data"),
]


@pytest.mark.parametrize(("inputs", "field"), BAD, ids=[f"{field}-{i}" for i, (_, field) in enumerate(BAD)])
def test_bad_tensors_name_their_field(inputs, field):
    with pytest.raises(InvalidArgument) as caught:
        check(*inputs)
    assert caught.value.field == field


def test_outputs_and_sizes():
    for outputs, field in (
        (["logits"], "outputs[0]"),
        (["sentence_embedding", "sentence_embedding"], "outputs[1]"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            check(tensor(), outputs=outputs)
        assert caught.value.field == field
    with pytest.raises(OutOfRange, match="context"):
        check(tensor(), context_length=2)
    with pytest.raises(OutOfRange, match="bytes"):
        check(tensor(), task="generate", limit=2 * 3 * 100 * 4 - 1)
    check(tensor(), task="generate", limit=2 * 3 * 100 * 4)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_any_right_padded_mask_gives_its_lengths(lengths):
    mask = np.array([[1] * length + [0] * (9 - length) for length in lengths])
    assert mask_lengths(mask, "f") == lengths


@given(st.binary(max_size=64), st.lists(st.integers(0, 2**64 - 1), max_size=4), st.text(max_size=5))
def test_no_header_does_more_than_raise_our_errors(data, shape, dtype):
    try:
        check(Tensor(name="input_ids", dtype=dtype, shape=shape, data=data))
        check(Tensor(name="input_ids", dtype="I64", shape=shape, data=data))
    except (InvalidArgument, OutOfRange):
        pass


lengths_of_rows = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(lengths_of_rows, st.integers(1, 9), st.integers(1, 50), st.integers(1, 8))
def test_micro_batches_cover_every_row_once_within_bounds(lengths, stages, max_tokens, max_rows):
    parts = plan(lengths, stages, max_tokens=max_tokens, max_rows=max_rows)
    assert [row for rows in parts for row in rows] == list(range(len(lengths)))
    for rows in parts:
        assert 1 <= len(rows) <= max_rows
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= max_tokens


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(2, 9))
def test_a_pipeline_gets_enough_micro_batches_that_are_worth_it(lengths, stages):
    tokens = [sum(lengths[row] for row in rows) for rows in plan(lengths, stages)]
    # No two neighbours could have gone together ...
    most = max(WORTH_TOKENS, -(-sum(lengths) // (PARTS_PER_STAGE * stages)))
    firsts = [lengths[rows.start] for rows in plan(lengths, stages)]
    rows_of = [len(rows) for rows in plan(lengths, stages)]
    for index in range(len(tokens) - 1):
        assert tokens[index] + firsts[index + 1] > min(most, MAX_TOKENS) or rows_of[index] == 64
    # ... and where rows are short enough, there are as many as the stages need.
    if max(lengths) <= most and sum(lengths) >= WORTH_TOKENS * PARTS_PER_STAGE * stages:
        assert len(tokens) >= PARTS_PER_STAGE * stages


def test_small_requests_and_single_stages_stay_whole():
    assert plan([8] * 8, 2) == [range(8)]
    assert plan([128] * 8, 2) == [range(row, row + 1) for row in range(8)]
    assert plan([128] * 8, 1) == [range(8)]


def piece(array):
    return Piece("F64", array.shape, array.astype("<f8").tobytes())


def array(made):
    assert made.dtype == "F64"
    return np.frombuffer(made.data).reshape(made.shape)


@given(lengths_of_rows, st.integers(1, 50), st.integers(1, 5), st.integers(1, 4))
def test_what_is_scattered_is_gathered_in_order(lengths, max_tokens, stages, replicas):
    width = max(lengths)
    rng = np.random.default_rng(0)
    padded = np.zeros((len(lengths), width, 2))
    for row, length in enumerate(lengths):
        padded[row, :length] = rng.normal(size=(length, 2))
    parts = plan(lengths, stages, replicas, max_tokens=max_tokens)
    groups = [[lengths[row] for row in rows] for rows in parts]
    packed = [piece(pack(padded, rows, lengths)) for rows in parts]
    np.testing.assert_array_equal(array(gather(packed, groups, width, per_token=True)), padded)
    samples = [piece(padded[rows.start : rows.stop, 0]) for rows in parts]
    np.testing.assert_array_equal(array(gather(samples, groups, width, per_token=False)), padded[:, 0])


@given(
    st.integers(1, 3000), st.integers(1, 2**20), st.integers(1, 9), st.integers(1, 4), st.integers(1, 2**22)
)
def test_samples_are_cut_evenly_within_bounds(rows, row_bytes, stages, replicas, max_bytes):
    parts = plan_samples(rows, row_bytes, stages, replicas, max_bytes=max_bytes, max_rows=200)
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= min(sizes) + 1
    assert max(sizes) <= 200
    assert max(sizes) == 1 or max(sizes) * row_bytes <= max_bytes
    # Enough of them for every stage of every replica, as long as each is worth its way.
    if len(parts) < wanted_parts(stages, replicas):
        assert max(sizes) == 1 or rows * row_bytes < (len(parts) + 1) * WORTH_BYTES


def test_one_big_batch_is_shared_by_all_replicas():
    assert len(plan_samples(64, 2**14, 1, 1)) == 1
    assert len(plan_samples(64, 2**14, 1, 3)) >= 6
    assert len(plan_samples(64, 2**14, 2, 3)) >= 24
    assert len(plan([128] * 64, 1, 3)) >= 6
    assert len(plan([128] * 64, 2, 3)) >= 24
    assert plan_samples(64, 64, 2, 3) == [range(64)], "so little is not worth sharing"


def test_an_answer_with_missing_rows_is_refused():
    for pieces, groups, per_token in (
        ([np.zeros((4, 2))], [[2, 3]], True),
        ([np.zeros((2, 2)), np.zeros((1, 3))], [[2, 3], [1]], False),
        ([np.zeros(())], [[1]], False),
    ):
        with pytest.raises(InternalError):
            gather([piece(each) for each in pieces], groups, 3, per_token=per_token)
    with pytest.raises(InternalError):
        gather([piece(np.zeros(1)), Piece("I64", (1,), bytes(8))], [[1], [1]], 1, per_token=False)
    one = gather([piece(np.ones((1, 2)))], [[1]], 2, per_token=True)
    assert array(one).tolist() == [[[1, 1], [0, 0]]]
