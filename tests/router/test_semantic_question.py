"""What of a request is its question, and what else has to be the same for two questions to share an answer."""

import pytest
from stagemesh.services.router.cache.believe import answer_fault
from stagemesh.services.router.cache.controls import controls_of
from stagemesh.services.router.cache.question import MAX_QUESTION, partition_with
from stagemesh.services.router.cache.usage import CacheUsageCounter

from stagemesh.v1.cache_pb2 import CachedChunk, CachedGeneration
from stagemesh.v1.inference_pb2 import CacheControl, GenerateRequest, Message, Messages, TokenIds
from stagemesh.v1.registry_pb2 import Semantic

from .specs import model
from .test_cache_key_fields import prepared

SPEC = model(cache=True, context_length=4096, vocab_size=2**20)
SPEC.semantic.CopyFrom(Semantic(enabled=True, encoder="e", allowed_false_hit_rate=0.01))


def question(request=None, spec=SPEC, tenant="t", **fields):
    given = {"model": "m", "prompt": "What is it?", "temperature": 0.0, "max_tokens": 8}
    if "chat" in fields or "tokens" in fields:
        del given["prompt"]
    return prepared(request or GenerateRequest(**(given | fields)), spec=spec, tenant=tenant)[0].question


def chat(*turns):
    return Messages(messages=[Message(role=role, content=content) for role, content in turns])


def test_the_text_is_no_part_of_the_partition_and_everything_else_is():
    base = question()
    assert base.text == "What is it?"
    assert question(prompt="Tell me, please, what it is.").partition == base.partition
    others = [
        question(tenant="u"),
        question(max_tokens=9),
        question(stop=["a"]),
        question(logit_bias={3: 1.0}),
        question(ignore_eos=True),
        question(repetition_penalty=1.5),
        question(temperature=0.5, seed=1),
        question(temperature=0.5, seed=2),
        question(cache_control=CacheControl(namespace="n")),
        question(chat=chat(("user", "What is it?"))),
    ]
    revised = model(cache=True, context_length=4096, vocab_size=2**20, revision="r9")
    revised.semantic.CopyFrom(SPEC.semantic)
    others.append(question(spec=revised))
    partitions = [base.partition, *(each.partition for each in others)]
    assert len(set(partitions)) == len(partitions)
    assert partition_with(base, "e@1") != partition_with(base, "e@2")


def test_of_a_conversation_the_last_message_is_the_question_and_the_rest_the_partition():
    first = question(chat=chat(("system", "Be brief."), ("user", "What is it?")))
    second = question(chat=chat(("system", "Be brief."), ("user", "Tell me what it is.")))
    assert (first.text, second.text) == ("What is it?", "Tell me what it is.")
    assert first.partition == second.partition
    for other in (
        chat(("system", "Be long."), ("user", "What is it?")),
        chat(("user", "Be brief."), ("user", "What is it?")),
        chat(("system", "Be brief"), ("system", "."), ("user", "What is it?")),
    ):
        assert question(chat=other).partition != first.partition


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": TokenIds(ids=[5, 6])},
        {"prompt": "   "},
        {"prompt": "x" * (MAX_QUESTION + 1)},
        {"temperature": 1.0},
        {"temperature": 1.0, "cache_control": CacheControl(sampled=True)},
        {"logprobs": 1},
        {"chat": chat(("user", "a"), ("assistant", "b"))},
    ],
    ids=["tokens", "blank", "long", "sampled", "sampled kept", "logprobs", "prefilled"],
)
def test_what_is_no_question(fields):
    assert question(**fields) is None


def test_a_model_that_did_not_opt_in_has_no_questions():
    assert question(spec=model(cache=True, context_length=4096, vocab_size=2**20)) is None


def test_a_caller_may_refuse():
    request = GenerateRequest(model="m", prompt="x")
    assert controls_of({"cache-control": "no-semantic"}, request).no_semantic
    assert controls_of({"x-stagemesh-cache-no-semantic": "true"}, request).no_semantic
    request.cache_control.no_semantic = True
    assert controls_of({}, request).no_semantic
    assert controls_of({}, request).lookup


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ""),
        ({"partition": b"q"}, "another partition"),
        ({"partition": b""}, "another partition"),
        ({"finish_reason": ""}, "no end"),
        ({"chunks": [CachedChunk(token_ids=[1, 2, 3, 4])]}, "too many tokens"),
        ({"chunks": [CachedChunk(token_ids=[1, 999])]}, "unknown tokens"),
    ],
    ids=["good", "another", "none", "unfinished", "long", "unknown"],
)
def test_an_answer_to_another_question_is_checked_too(more, expected):
    kept = {
        "chunks": [CachedChunk(text="a", token_ids=[1, 2])],
        "finish_reason": "stop",
        "prompt_tokens": 77,
        "partition": b"p",
    }
    value = CachedGeneration(**(kept | more))
    assert answer_fault(value, partition=b"p", max_tokens=3, vocab_size=100) == expected


def test_what_is_spared_is_summed():
    usage = CacheUsageCounter(None, None)
    usage.miss("m")
    kept = CachedGeneration(chunks=[CachedChunk(text="abc", token_ids=[1, 2])], compute_ms=30)
    usage.hit("m", kept)
    usage.hit("m", kept, semantic=True)
    usage.hit("other")
    held = usage._untold["m"]
    assert (held.lookups, held.exact_hits, held.semantic_hits) == (3, 1, 1)
    assert (held.tokens_saved, held.compute_ms_saved, held.bytes_served) == (4, 60, 6)
