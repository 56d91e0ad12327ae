import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.oip.codec import (
    _CONTENTS,
    DTYPES,
    add_outputs,
    add_texts,
    check_parameters,
    read_texts,
    to_tensors,
)
from stagemesh.services.router.oip.generate import generation_of

from stagemesh.errors import InvalidArgument
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.tensor import ITEM_BYTES
from stagemesh.v1.tensor_pb2 import Tensor


def ask(datatype="INT64", shape=(1, 2), raw=None, name="input_ids", **contents):
    request = oip.ModelInferRequest(model_name="m")
    given_input = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for attribute, values in contents.items():
        getattr(given_input.contents, attribute).extend(values)
    return request


def test_raw_and_typed_contents_mean_the_same():
    raw = to_tensors(ask(raw=struct.pack("<2q", 5, -6)))
    typed = to_tensors(ask(int64_contents=[5, -6]))
    assert (
        raw == typed == [Tensor(name="input_ids", dtype="I64", shape=[1, 2], data=struct.pack("<2q", 5, -6))]
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ask("COMPLEX", raw=b""), "inputs[0].datatype"),
        (ask("BYTES", raw=b""), "inputs[0].datatype"),
        (ask(shape=(-1, 2), raw=b""), "inputs[0].shape"),
        (ask(int64_contents=[1]), "inputs[0].contents"),
        (ask(int_contents=[1, 2]), "inputs[0].contents"),
        (ask("INT8", int_contents=[1, 300]), "inputs[0].contents"),
        (ask("FP16", fp32_contents=[1, 2]), "inputs[0].datatype"),
        (ask(raw=b"x" * 16, int64_contents=[1, 2]), "raw_input_contents"),
    ],
)
def test_bad_tensors_name_their_field(request_, field):
    with pytest.raises(InvalidArgument) as caught:
        to_tensors(request_)
    assert caught.value.field == field


def test_as_many_payloads_as_inputs():
    request = ask(raw=b"x" * 16)
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidArgument) as caught:
        to_tensors(request)
    assert caught.value.field == "raw_input_contents"


@given(st.lists(st.text(), max_size=5))
def test_texts_come_back(texts):
    items = [text.encode() for text in texts]
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    if items:
        assert read_texts(ask("BYTES", [len(items)], raw, "text_input"), 0) == texts
        assert read_texts(ask("BYTES", [len(items)], name="text_input", bytes_contents=items), 0) == texts


@given(st.binary(min_size=1, max_size=20))
def test_hostile_text_payloads_raise_only_our_error(data):
    try:
        read_texts(ask("BYTES", [1], data, "text_input"), 0)
    except InvalidArgument:
        pass


F32 = Tensor(name="o", dtype="F32", shape=[2], data=struct.pack("<2f", 1.5, -2))


def test_outputs_are_raw_or_typed_as_asked():
    raw, typed = oip.ModelInferResponse(), oip.ModelInferResponse()
    add_outputs(raw, [F32], ask(raw=b""))
    add_outputs(typed, [F32], ask(int64_contents=[1, 2]))
    assert list(raw.raw_output_contents) == [F32.data]
    assert list(typed.outputs[0].contents.fp32_contents) == [1.5, -2]
    assert not typed.raw_output_contents
    add_texts(raw, "text_output", ["é", "b"], raw=True)
    assert raw.outputs[1].shape == [2]
    assert raw.raw_output_contents[1] == b"\x02\x00\x00\x00\xc3\xa9\x01\x00\x00\x00b"


def test_binary_data_output_decides_over_the_form_of_the_request():
    for wanted in (True, False):
        request = ask(raw=b"") if not wanted else ask(int64_contents=[1, 2])
        request.parameters["binary_data_output"].bool_param = wanted
        check_parameters(request)
        response = oip.ModelInferResponse()
        add_outputs(response, [F32], request)
        assert bool(response.raw_output_contents) is wanted


def test_one_output_without_typed_contents_makes_all_of_them_raw():
    halves = Tensor(name="h", dtype="BF16", shape=[1], data=b"\x80\x3f")
    response = oip.ModelInferResponse()
    add_outputs(response, [F32, halves], ask(int64_contents=[1, 2]))
    assert list(response.raw_output_contents) == [F32.data, halves.data]
    assert [each.datatype for each in response.outputs] == ["FP32", "BF16"]
    assert not any(each.HasField("contents") for each in response.outputs)


@given(
    st.sampled_from(sorted(set(DTYPES) - {"FP16", "BF16"})),
    st.lists(st.integers(0, 1), min_size=1, max_size=6),
    st.integers(1, 5),
)
def test_typed_contents_of_every_dtype_and_rank_come_back(datatype, values, rank):
    shape = [1] * (rank - 1) + [len(values)]
    (tensor,) = to_tensors(ask(datatype, shape, **{_CONTENTS[datatype][0]: values}))
    assert (tensor.dtype, list(tensor.shape)) == (DTYPES[datatype], shape)
    assert len(tensor.data) == len(values) * ITEM_BYTES[tensor.dtype]
    response = oip.ModelInferResponse()
    add_outputs(response, [tensor], ask(int64_contents=[1, 2]))
    assert list(getattr(response.outputs[0].contents, _CONTENTS[datatype][0])) == values


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("request", "binary_data"),
        ("request", "beams"),
        ("inputs", "shared_memory_region"),
        ("inputs", "binary_data_size"),
        ("outputs", "classification"),
        ("outputs", "binary_data"),
    ],
)
def test_parameters_that_are_not_supported_are_named(place, name):
    request = ask(raw=b"")
    request.outputs.add(name="o")
    holder = request if place == "request" else getattr(request, place)[0]
    holder.parameters[name].int64_param = 1
    with pytest.raises(InvalidArgument) as caught:
        check_parameters(request)
    assert caught.value.field == ("" if place == "request" else f"{place}[0].") + f"parameters.{name}"


def generation(**parameters):
    request = ask("BYTES", [1], name="text_input", bytes_contents=[b"hi"])
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[
            type(value)
        ]
        setattr(request.parameters[name], kind, value)
    return generation_of(request)


def test_parameters_become_a_generation():
    made = generation(max_tokens=5, temperature=0.5, top_p=1, top_k="3", seed=9, ignore_eos=True, stop="x")
    assert (made.prompt, made.max_tokens, made.temperature, made.top_k, made.seed) == ("hi", 5, 0.5, 3, 9)
    assert made.ignore_eos
    assert list(made.stop) == ["x"]
    assert not generation(stream=True).HasField("max_tokens")
    more = generation(n=2, min_tokens="3", presence_penalty=-1, frequency_penalty=0.5, repetition_penalty=1.5)
    assert (more.n, more.min_tokens) == (2, 3)
    assert (more.presence_penalty, more.frequency_penalty, more.repetition_penalty) == (-1, 0.5, 1.5)
    lists = generation(stop='["a", "b"]', stop_token_ids="[5, 6]", logit_bias='{"7": -1.5}')
    assert (list(lists.stop), list(lists.stop_token_ids)) == (["a", "b"], [5, 6])
    assert dict(lists.logit_bias) == {7: -1.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 1.5),
        ("logit_bias", "[1]"),
        ("logit_bias", '{"a": 1}'),
        ("stop", "[1]"),
        ("stop_token_ids", "x"),
        ("max_tokens", "many"),
        ("seed", -1),
        ("top_k", 2**40),
        ("beams", 2),
        ("max_tokens", True),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(InvalidArgument) as caught:
        generation(**{name: value})
    assert caught.value.field == f"parameters.{name}"
