import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.cache.choice import rank_caches
from stagemesh.services.router.cache.controls import NONE, CacheControls
from stagemesh.services.router.cache.key import embed_key, generation_key, infer_key
from stagemesh.services.router.prepare import is_cached, sampling_of

from stagemesh.v1.inference_pb2 import GenerateRequest
from stagemesh.v1.stage_pb2 import Sampling
from stagemesh.v1.tensor_pb2 import Tensor

from .specs import model


def key(
    spec=None, tenant="t", ids=(1, 2), max_tokens=8, stop=(), stop_token_ids=(), min_tokens=0, **sampling
):
    settings = {"temperature": 0.5, "seed": 7, **sampling}
    return generation_key(
        spec or model(),
        tenant,
        ids,
        Sampling(**settings),
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=stop_token_ids,
        min_tokens=min_tokens,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"spec": model(name="n")},
        {"spec": model(revision="r2")},
        {"spec": model(dtype="BF16")},
        {"tenant": "u"},
        {"ids": (1, 2, 3)},
        {"ids": (2, 1)},
        {"max_tokens": 9},
        {"stop": ["x"]},
        {"stop_token_ids": [3]},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"seed": 8},
        {"min_tokens": 2},
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"logit_bias": {3: 1.0}},
        {"logit_bias": {4: 1.0}},
    ],
    ids=str,
)
def test_everything_that_changes_the_answer_changes_the_key(change):
    assert key(**change) != key()


def test_what_does_not_change_the_answer_does_not_change_the_key():
    assert key() == key(spec=model(stages=4, policy="round_robin", generation=9))
    assert key(stop=["a", "b"]) == key(stop=["b", "a", "a"])
    assert key(temperature=0, seed=1, top_k=5) == key(temperature=0, seed=2)
    assert key(repetition_penalty=1.0, frequency_penalty=-0.0, logit_bias={5: 0.0}) == key()


def test_what_moves_logits_changes_greedy_answers_too():
    changes = [{"repetition_penalty": 2.0}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}]
    changes += [{"logit_bias": {1: 2.0}}, {"logit_bias": {2: 1.0}}, {"min_tokens": 3}]
    assert len({key(temperature=0, **change) for change in [{}, *changes]}) == len(changes) + 1


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
)
def test_no_two_lists_of_rows_share_a_key(first, second):
    assert (embed_key(model(), "t", first) == embed_key(model(), "t", second)) == (first == second)


def test_infer_inputs_in_any_order():
    a = Tensor(name="a", dtype="I64", shape=[1], data=b"x" * 8)
    b = Tensor(name="b", dtype="I64", shape=[1], data=b"y" * 8)
    swapped = [Tensor(name="a", dtype="I64", shape=[1], data=b"y" * 8), a]
    assert infer_key(model(), "t", [a, b], ["o"]) == infer_key(model(), "t", [b, a], ["o"])
    assert infer_key(model(), "t", [a, b], ["o"]) != infer_key(model(), "t", [a, b], ["o", "p"])
    assert infer_key(model(), "t", [a, b], []) != infer_key(model(), "t", swapped, [])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"temperature": 0.0}, True),
        ({"temperature": 1.0}, False),
        ({"seed": 0}, True),
        ({"temperature": 0.7, "seed": 3}, True),
        ({"temperature": 0.0, "logprobs": 0}, False),
    ],
)
def test_only_deterministic_generations_are_cached(settings, expected):
    assert is_cached(GenerateRequest(model="m", prompt="p", **settings), NONE) is expected


def test_others_are_cached_when_that_is_asked_for():
    wanted = CacheControls(sampled=True)
    assert is_cached(GenerateRequest(model="m", prompt="p"), wanted)
    assert is_cached(GenerateRequest(model="m", prompt="p", temperature=1.0), wanted)
    assert not is_cached(GenerateRequest(model="m", prompt="p", logprobs=1), wanted)


def test_sampling_defaults():
    drawn = sampling_of(GenerateRequest(), random.Random(1))
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p, drawn.logprobs) == (1.0, 0, 0.0, 0.0, 0)
    assert drawn.seed != sampling_of(GenerateRequest(), random.Random(2)).seed
    assert sampling_of(GenerateRequest(logprobs=0), random.Random(1)).logprobs == 1


def test_few_keys_move_when_a_cache_leaves():
    keys = [bytes([i]) * 4 for i in range(200)]
    before = {key: rank_caches(["a", "b", "c"], key) for key in keys}
    assert {ranked[0] for ranked in before.values()} == {"a", "b", "c"}
    for key_ in keys:
        # Those of the lost one go to their second choice, and all others stay.
        assert rank_caches(["a", "b"], key_) == [each for each in before[key_] if each != "c"]
    moved = {ranked[1] for ranked in before.values() if ranked[0] == "c"}
    assert moved == {"a", "b"}
    assert rank_caches([], b"k") == []
    assert rank_caches(["a"], b"k") == ["a"]
