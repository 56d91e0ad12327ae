import math

import pytest
from stagemesh.services.router.validate import check_generate, check_length, check_model, check_texts

from stagemesh.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from stagemesh.v1.inference_pb2 import GenerateRequest, Message, Messages, TokenIds

from .specs import model

GOOD = {"model": "m", "prompt": "hello"}
BAD = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": None, "chat": Messages()}, "chat.messages"),
    ({"prompt": None, "chat": Messages(messages=[Message(content="x")])}, "chat.messages[0].role"),
    ({"prompt": None, "tokens": TokenIds()}, "tokens.ids"),
    ({"prompt": None, "tokens": TokenIds(ids=[1, 100])}, "tokens.ids"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": math.nan}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"logit_bias": {100: 1.0}}, "logit_bias"),
    ({"logit_bias": {5: math.nan}}, "logit_bias[5]"),
    ({"logit_bias": {5: -100.5}}, "logit_bias[5]"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a" * 257]}, "stop[0]"),
    ({"stop_token_ids": [100]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
]


@pytest.mark.parametrize(("change", "field"), BAD, ids=[f"{field}-{i}" for i, (_, field) in enumerate(BAD)])
def test_bad_input_names_its_field(change, field):
    with pytest.raises(InvalidArgument) as caught:
        check_generate(GenerateRequest(**{**GOOD, **change}), model())
    assert caught.value.field == field
    assert field.split("[")[0] in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_p": 1.0},
        {"top_k": 0},
        {"min_p": 1.0},
        {"logprobs": 0},
        {"logprobs": 20},
        {"stop": ["a"] * 16},
        {"max_tokens": 1},
    ],
)
def test_the_bounds_themselves_are_fine(change):
    check_generate(GenerateRequest(**{**GOOD, **change}), model())


def test_unknown_model_and_wrong_task():
    with pytest.raises(NotFound) as caught:
        check_model("x" * 500, {"m": model()})
    assert len(caught.value.message) < 200
    with pytest.raises(InvalidArgument):
        check_model("", {})
    with pytest.raises(FailedPrecondition) as refused:
        check_generate(GenerateRequest(**GOOD), model(task="embed"))
    assert refused.value.field == "model"


def test_prompt_and_completion_must_fit_the_context():
    spec = model(context_length=64)
    assert check_length(10, None, spec, default=128) == 54
    assert check_length(10, None, spec, default=5) == 5
    assert check_length(10, 54, spec, default=5) == 54
    for prompt, asked, field in ((64, None, "prompt"), (1000, 1, "prompt"), (10, 55, "max_tokens")):
        with pytest.raises(OutOfRange) as caught:
            check_length(prompt, asked, spec, default=5)
        assert caught.value.field == field
    with pytest.raises(InvalidArgument):
        check_length(0, None, spec, default=5)


def test_texts_to_embed():
    with pytest.raises(InvalidArgument):
        check_texts([], max_texts=2)
    with pytest.raises(InvalidArgument) as caught:
        check_texts(["a", ""], max_texts=2)
    assert caught.value.field == "texts[1]"
    with pytest.raises(OutOfRange):
        check_texts(["a"] * 3, max_texts=2)
