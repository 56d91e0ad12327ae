"""Every field of every request either changes the key or is said here not to change the answer.

A field that is added later fails the first test until it is put on one of the lists.
"""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.router.cache.controls import controls_of
from stagemesh.services.router.cache.key import infer_key
from stagemesh.services.router.http.schema import ChatBody, CompletionBody, parse
from stagemesh.services.router.http.to_generate import chat_request, completion_requests
from stagemesh.services.router.prepare import prepare
from stagemesh.services.router.resume import ResumeTokens

from stagemesh.v1.inference_pb2 import (
    EmbedRequest,
    GenerateRequest,
    InferRequest,
    Message,
    Messages,
    TokenIds,
)
from stagemesh.v1.stage_pb2 import Sampling
from stagemesh.v1.tensor_pb2 import Tensor

from .specs import model

SPEC = model(cache=True, context_length=4096, vocab_size=2**20)


class Words:
    """A tokenizer: one token a character; what is said in a conversation ends with a mark of its role."""

    eos_ids = (20,)

    def encode(self, text):
        return [ord(letter) for letter in text]

    async def encode_conversation(self, messages):
        return [ord(letter) for each in messages for letter in f"{each['role']}>{each['content']}|"]


def prepared(request, tenant="t", spec=SPEC, rng=0):
    return asyncio.run(
        prepare(
            request,
            spec,
            Words(),
            tenant,
            random.Random(rng),
            default_max_tokens=64,
            resume_tokens=ResumeTokens(),
            controls=controls_of({}, request),
        )
    )


def keys(request, **how):
    return [plan.key for plan in prepared(request, **how)]


NUMBERS = {
    "max_tokens": st.integers(8, 100),
    "temperature": st.sampled_from([0.25, 0.5, 1.0, 1.5]),
    "top_k": st.integers(1, 50),
    "top_p": st.sampled_from([0.125, 0.25, 0.5, 0.75]),
    "min_p": st.sampled_from([0.125, 0.25, 0.5]),
    "seed": st.integers(0, 2**64 - 1),
    "presence_penalty": st.sampled_from([-1.0, 0.25, 0.5, 2.0]),
    "frequency_penalty": st.sampled_from([-1.0, 0.25, 0.5, 2.0]),
    "repetition_penalty": st.sampled_from([0.5, 1.25, 2.0]),
    "min_tokens": st.integers(1, 8),
}
MANY = {
    "stop": st.lists(st.text("ab", min_size=1, max_size=3), max_size=3, unique=True),
    "stop_token_ids": st.lists(st.integers(1, 19), max_size=3, unique=True),
}
BIAS = st.dictionaries(st.integers(0, 9), st.sampled_from([-1.0, 0.5, 2.0]), max_size=3)
TEXT = st.text("xyz", min_size=1, max_size=6)
CHANGE_THE_KEY = {
    *NUMBERS,
    *MANY,
    "logit_bias",
    "ignore_eos",
    "model",
    "prompt",
    "chat",
    "tokens",
    "cache_control",
}
# Several answers have a key each; the others choose whether to ask at all, or cannot be cached.
DO_NOT = {"n", "cache_no_lookup", "cache_no_store", "logprobs", "resume"}


def test_every_field_is_on_a_list():
    assert set(GenerateRequest.DESCRIPTOR.fields_by_name) == CHANGE_THE_KEY | DO_NOT
    assert set(InferRequest.DESCRIPTOR.fields_by_name) == {
        *("model", "inputs", "outputs"),
        *("cache_no_lookup", "cache_no_store", "cache_control"),
    }
    assert set(EmbedRequest.DESCRIPTOR.fields_by_name) == {"model", "texts", "tokens", "cache_control"}
    # What the head is told of sampling, and with it what the key has to cover. `held_*` come from the stops and
    # `min_tokens`; an answer with log probabilities is not cached.
    assert set(Sampling.DESCRIPTOR.fields_by_name) == {
        *("temperature", "top_k", "top_p", "min_p", "seed"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"),
        *("held_ids", "held_before", "logprobs"),
    }


@st.composite
def requests(draw):
    request = GenerateRequest(model="m", prompt=draw(TEXT), ignore_eos=draw(st.booleans()))
    for name, values in NUMBERS.items():
        # Without a seed a sampled answer is not cached; of a greedy one most settings change nothing.
        if name in ("temperature", "seed") or draw(st.booleans()):
            setattr(request, name, draw(values))
    for name, values in MANY.items():
        getattr(request, name).extend(draw(values))
    request.logit_bias.update(draw(BIAS))
    return request


@settings(max_examples=60, deadline=None)
@given(requests(), st.sampled_from(sorted(CHANGE_THE_KEY - {"model", "chat", "tokens"})), st.data())
def test_any_change_of_a_field_that_changes_the_answer_changes_the_key(request, name, data):
    changed = GenerateRequest()
    changed.CopyFrom(request)
    if name in NUMBERS:
        values = NUMBERS[name].filter(lambda value: value != getattr(request, name))
        setattr(changed, name, data.draw(values))
    elif name in MANY:
        values = data.draw(MANY[name].filter(lambda value: set(value) != set(getattr(request, name))))
        changed.ClearField(name)
        getattr(changed, name).extend(values)
    elif name == "logit_bias":
        values = data.draw(BIAS.filter(lambda value: value != dict(request.logit_bias)))
        changed.ClearField(name)
        changed.logit_bias.update(values)
    elif name == "ignore_eos":
        changed.ignore_eos = not request.ignore_eos
    elif name == "prompt":
        changed.prompt = data.draw(TEXT.filter(lambda value: value != request.prompt))
    else:
        changed.cache_control.namespace = data.draw(TEXT)
    assert keys(changed) != keys(request)
    assert None not in keys(request)
    assert keys(request) == keys(request, rng=1)
    assert keys(request, tenant="u") != keys(request)
    assert keys(request, spec=model("other", cache=True, context_length=4096, vocab_size=2**20)) != keys(
        request
    )


def test_the_same_tokens_are_the_same_however_they_are_given():
    text = GenerateRequest(prompt="user>hi|", temperature=0)
    chat = GenerateRequest(chat=Messages(messages=[Message(role="user", content="hi")]), temperature=0)
    tokens = GenerateRequest(tokens=TokenIds(ids=[ord(c) for c in "user>hi|"]), temperature=0)
    assert keys(text) == keys(chat) == keys(tokens)
    tokens.tokens.ids[0] += 1
    assert keys(tokens) != keys(text)
    chat.chat.messages[0].role = "system"
    assert keys(chat) != keys(text)


def test_what_only_says_how_to_ask_changes_nothing():
    request = GenerateRequest(prompt="p", temperature=0)
    other = GenerateRequest(
        prompt="p", temperature=0, cache_no_lookup=True, cache_no_store=True, seed=5, top_k=3
    )
    control = {"ttl_s": 3, "max_age_s": 2, "tags": ["q"], "replay": 2, "no_cache": True, "sampled": True}
    for name, value in control.items():
        if name == "tags":
            other.cache_control.tags.extend(value)
        else:
            setattr(other.cache_control, name, value)
    assert keys(other) == keys(request)
    assert keys(GenerateRequest(prompt="p", temperature=0, logprobs=0)) == [None]


def test_answers_to_one_prompt_have_a_key_each_unless_they_are_the_same():
    seeded = keys(GenerateRequest(prompt="p", seed=1, n=3))
    assert len(set(seeded)) == 3
    assert seeded[0] == keys(GenerateRequest(prompt="p", seed=1))[0]
    assert len(set(keys(GenerateRequest(prompt="p", temperature=0, n=3)))) == 1


def test_a_sampled_answer_is_cached_under_one_key_when_that_is_asked_for():
    request = GenerateRequest(prompt="p", temperature=0.5, n=2)
    assert keys(request) == [None, None]
    request.cache_control.sampled = True
    any_seed = keys(request)
    assert len(set(any_seed)) == 2
    assert any_seed == keys(request, rng=7)
    assert [plan.drawn for plan in prepared(request)] == [True, True]
    seeded = GenerateRequest(prompt="p", temperature=0.5, n=2, seed=0)
    assert not set(keys(seeded)) & set(any_seed)
    assert [plan.drawn for plan in prepared(seeded)] == [False, False]
    request.temperature = 0.25
    assert keys(request) != any_seed


TENSORS = st.lists(
    st.builds(
        Tensor,
        name=st.sampled_from(["a", "b", "ab"]),
        dtype=st.sampled_from(["U8", "I8"]),
        shape=st.lists(st.integers(0, 3), max_size=2),
        data=st.binary(max_size=3),
    ),
    max_size=3,
    unique_by=lambda tensor: tensor.name,
)
NAMES = st.lists(st.sampled_from(["x", "y", "xy"]), max_size=2, unique=True)


@given(TENSORS, NAMES, st.sampled_from(["", "n"]), TENSORS, NAMES, st.sampled_from(["", "n"]))
def test_tensors_have_one_key_exactly_when_they_are_the_same(first, outs, space, second, others, other_space):
    def whole(tensors, names, namespace):
        return sorted(each.SerializeToString() for each in tensors), names, namespace

    same = whole(first, outs, space) == whole(second, others, other_space)
    assert (
        infer_key(SPEC, "t", first, outs, space) == infer_key(SPEC, "t", second, others, other_space)
    ) == same


BODY = {
    "max_tokens": 9,
    "temperature": 0.25,
    "top_p": 0.25,
    "seed": 4,
    "stop": ["z"],
    "n": 2,
    "presence_penalty": 1.5,
    "frequency_penalty": 1.5,
    "logit_bias": {"3": 1.0},
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "top_k": 3,
    "min_p": 0.5,
    "ignore_eos": True,
    "stop_token_ids": [3],
    "logprobs": 1,
    "prompt": "other",
}
ONLY_THE_FORM = {"model", "stream", "stream_options"}


@pytest.mark.parametrize("name", sorted(BODY))
def test_every_field_of_a_completion_that_changes_the_answer_changes_the_keys(name):
    base = {"model": "m", "prompt": "p", "seed": 1, "max_tokens": 20}
    (before,) = completion_requests(parse(CompletionBody, base), {})
    (after,) = completion_requests(parse(CompletionBody, base | {name: BODY[name]}), {})
    assert keys(after) != keys(before)


def test_every_field_of_the_bodies_is_on_a_list():
    assert set(CompletionBody.model_fields) == set(BODY) | ONLY_THE_FORM
    chat = {"messages", "max_completion_tokens", "top_logprobs"}
    assert set(ChatBody.model_fields) == (set(BODY) - {"prompt"}) | chat | ONLY_THE_FORM


def test_every_field_of_a_conversation_that_changes_the_answer_changes_the_keys():
    base = {"model": "m", "messages": [{"role": "user", "content": "p"}], "seed": 1, "max_tokens": 20}
    before = keys(chat_request(parse(ChatBody, base), {}))
    others = {name: value for name, value in BODY.items() if name not in ("prompt", "logprobs")}
    others |= {"messages": [{"role": "user", "content": "q"}], "logprobs": True}
    for name, value in others.items():
        assert keys(chat_request(parse(ChatBody, base | {name: value}), {})) != before, name
    del base["max_tokens"]
    assert keys(chat_request(parse(ChatBody, base | {"max_completion_tokens": 9}), {})) != before
