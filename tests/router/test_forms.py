"""A request whose like was checked before comes to the same batch, or the same error, as one that is checked anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.forms import MAX_FORMS, WHOLE_ROWS
from stagemesh.services.router.signature import signature_of
from stagemesh.services.router.validate_tensors import Batch, check_infer

from stagemesh.errors import InvalidArgument, StagemeshError
from stagemesh.tensor import from_numpy
from stagemesh.v1.inference_pb2 import InferRequest
from stagemesh.v1.registry_pb2 import ModelSpec
from stagemesh.v1.tensor_pb2 import SharedMemory, Tensor

from .specs import model

LIMIT = 2**16


@st.composite
def requests(draw: st.DrawFn) -> InferRequest:
    """Good and bad ones: few shapes, so that many are alike."""
    rows, width = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(["int64", "int32", "float32"]))
    ids = draw(st.lists(st.integers(-1, 12), min_size=rows * width, max_size=rows * width))
    tensors = [from_numpy("input_ids", np.array(ids, dtype=dtype).reshape(rows, width))]
    if draw(st.booleans()):
        mask = draw(st.lists(st.integers(0, 2), min_size=rows * width, max_size=rows * width))
        kind = draw(st.sampled_from(["int64", "bool"]))
        tensors.append(from_numpy("attention_mask", np.array(mask).astype(kind).reshape(rows, width)))
    for tensor in tensors:
        harm = draw(st.integers(0, 12))
        if harm == 0:
            tensor.data = tensor.data[:-1]
        elif harm == 1:
            tensor.encoding = "int8"
        elif harm == 2:
            tensor.shared.CopyFrom(SharedMemory(offset=1, length=2))
        elif harm == 3:
            tensor.shape.append(1)
    outputs = draw(st.sampled_from([[], ["sentence_embedding"], ["nothing"]]))
    return InferRequest(model="m", inputs=tensors, outputs=outputs)


def outcome(request: InferRequest, spec: ModelSpec) -> tuple[object, ...]:
    try:
        batch = check_infer(request, spec, max_output_bytes=LIMIT)
    except StagemeshError as error:
        return type(error), error.field, error.message
    return words(batch)


def words(batch: Batch) -> tuple[object, ...]:
    inputs = [
        (each.name, each.dtype, each.array.dtype.str, each.array.shape, each.array.tobytes())
        for each in batch.inputs
    ]
    assert batch.whole is None or list(batch.whole.lengths) == batch.lengths
    return inputs, batch.lengths, [each.name for each in batch.outputs], batch.by_token, batch.fixed


@given(st.lists(requests(), min_size=1, max_size=12))
def test_what_was_checked_before_changes_nothing(asked: list[InferRequest]) -> None:
    asked = [*asked, *asked]
    same = model(task="embed", vocab_size=10)
    # One after the other: what is known of a spec goes when another one of its name comes.
    again = [outcome(request, same) for request in asked]
    assert again == [outcome(request, model(task="embed", vocab_size=10)) for request in asked]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"encoding": "int8"}, "inputs[1].encoding"),
        ({"shared": SharedMemory(offset=1, length=2)}, "inputs[1].encoding"),
        ({"data": b"\1\2"}, "inputs[1].data"),
        ({"data": b"\1"}, "inputs[1].data"),
    ],
)
def test_what_only_the_payload_tells_is_looked_at_each_time(change: dict[str, object], field: str) -> None:
    spec = model(task="embed")
    mask = Tensor(name="attention_mask", dtype="BOOL", shape=[1, 2], data=b"\1\1")
    request = InferRequest(inputs=[tensor(2), mask])
    for dtype in ("BOOL", "U8"):
        request.inputs[1].dtype = dtype
        request.inputs[1].data = b"\1\1"
        request.inputs[1].encoding = ""
        request.inputs[1].ClearField("shared")
        check_infer(request, spec, max_output_bytes=LIMIT)
        request.inputs[1].MergeFrom(Tensor(**change))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument) as refused:
            check_infer(request, spec, max_output_bytes=LIMIT)
        assert refused.value.field == field


def test_a_form_is_of_requests_that_are_alike_in_everything() -> None:
    ids = np.zeros((1, 2), np.int64)
    kinds = from_numpy("token_type_ids", ids)
    others = [
        [from_numpy("token_type_ids", ids)],
        [from_numpy("input_ids", ids.view(np.float64))],
        [from_numpy("input_ids", ids.reshape(2, 1))],
        [from_numpy("input_ids", ids), kinds],
        [],
    ]
    asked = [InferRequest(inputs=inputs) for inputs in others]
    asked.append(InferRequest(inputs=[tensor(2)], outputs=["last_hidden_state"]))
    for request in asked:
        spec = model(task="embed")
        check_infer(InferRequest(inputs=[tensor(2)]), spec, max_output_bytes=LIMIT)
        found = outcome(request, spec)
        assert outcome(InferRequest(inputs=[tensor(2)]), spec)[1] == [2]
        assert found == outcome(request, model(task="embed"))


def tensor(width: int) -> Tensor:
    return from_numpy("input_ids", np.ones((1, width), dtype=np.int64))


def test_forms_of_a_model_are_bounded_and_go_with_its_record() -> None:
    spec = model(task="embed", context_length=10**6)
    for width in range(1, MAX_FORMS + 10):
        check_infer(InferRequest(inputs=[tensor(width)]), spec, max_output_bytes=2**30)
    assert 0 < len(signature_of(spec).forms) <= MAX_FORMS
    smaller = model(task="embed", context_length=2)
    with pytest.raises(StagemeshError, match="context of 2"):
        check_infer(InferRequest(inputs=[tensor(3)]), smaller, max_output_bytes=2**30)


@pytest.mark.parametrize(("rows", "kept"), [(WHOLE_ROWS, True), (WHOLE_ROWS + 1, False)])
def test_nothing_that_grows_with_the_rows_is_kept(rows: int, kept: bool) -> None:
    spec = model(task="embed", vocab_size=10)
    request = InferRequest(inputs=[from_numpy("input_ids", np.ones((rows, 2), np.int64))])
    check_infer(request, spec, max_output_bytes=LIMIT * rows)
    batch = check_infer(request, spec, max_output_bytes=LIMIT * rows)
    assert (batch.whole is not None) == kept
    assert batch.lengths == [2] * rows


def test_what_a_mask_says_is_no_part_of_the_form() -> None:
    spec = model(task="embed")
    for lengths in ([1, 2], [2, 1], [2, 2]):
        mask = np.array([[1, 1] if length == 2 else [1, 0] for length in lengths])
        ids = from_numpy("input_ids", np.ones((2, 2), np.int64))
        request = InferRequest(inputs=[ids, from_numpy("attention_mask", mask)])
        batch = check_infer(request, spec, max_output_bytes=LIMIT)
        assert (batch.lengths, batch.whole) == (lengths, None)


def test_the_limit_of_an_answer_is_part_of_the_form() -> None:
    spec = model(task="generate", vocab_size=1000)
    request = InferRequest(inputs=[tensor(4)])
    check_infer(request, spec, max_output_bytes=2**20)
    with pytest.raises(StagemeshError, match="the answer would take"):
        check_infer(request, spec, max_output_bytes=100)


@given(
    st.sampled_from(["int64", "int32"]),
    st.integers(1, 40),
    st.lists(st.integers(-3, 42), min_size=1, max_size=40),
)
def test_exactly_the_ids_of_the_vocabulary_pass(dtype: str, vocabulary: int, ids: list[int]) -> None:
    request = InferRequest(inputs=[from_numpy("input_ids", np.array([ids], dtype=dtype))])
    spec = model(task="embed", vocab_size=vocabulary)
    if all(0 <= each < vocabulary for each in ids):
        check_infer(request, spec, max_output_bytes=LIMIT)
    else:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        with pytest.raises(StagemeshError, match=f"token id {wrong} is outside"):
            check_infer(request, spec, max_output_bytes=LIMIT)


def test_a_bad_id_is_named_in_a_request_like_a_good_one() -> None:
    spec = model(task="embed", vocab_size=10)
    check_infer(InferRequest(inputs=[tensor(3)]), spec, max_output_bytes=LIMIT)
    bad = from_numpy("input_ids", np.array([[1, 10, 2]], dtype=np.int64))
    with pytest.raises(InvalidArgument, match="token id 10") as refused:
        check_infer(InferRequest(inputs=[bad]), spec, max_output_bytes=LIMIT)
    assert refused.value.field == "inputs[0].data"
