import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.oip_codec import add_output, add_text, read_texts, to_tensors
from stagemesh.services.router.oip_generate import generation_of

from stagemesh.errors import InvalidArgument
from stagemesh.oip import open_inference_pb2 as oip
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


def test_outputs_are_raw_or_typed_as_asked():
    tensor = Tensor(name="o", dtype="F32", shape=[2], data=struct.pack("<2f", 1.5, -2))
    raw, typed = oip.ModelInferResponse(), oip.ModelInferResponse()
    add_output(raw, tensor, raw=True)
    add_output(typed, tensor, raw=False)
    assert list(raw.raw_output_contents) == [tensor.data]
    assert list(typed.outputs[0].contents.fp32_contents) == [1.5, -2]
    add_text(raw, "text_output", "é", raw=True)
    assert raw.raw_output_contents[1] == b"\x02\x00\x00\x00\xc3\xa9"


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 1.5),
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
