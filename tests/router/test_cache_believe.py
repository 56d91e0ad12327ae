import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.cache.believe import (
    embed_fault,
    generation_fault,
    in_one_chunk,
    infer_fault,
)

from stagemesh.tensor import from_numpy
from stagemesh.v1.cache_pb2 import CachedChunk, CachedGeneration
from stagemesh.v1.inference_pb2 import EmbedResponse, InferResponse
from stagemesh.v1.registry_pb2 import TensorSpec

from .specs import model


def kept(finish="length", prompt_tokens=3, ids=((1, 2), (), (3,))):
    chunks = [CachedChunk(text=f"<{row}>", token_ids=row) for row in ids]
    return CachedGeneration(chunks=chunks, finish_reason=finish, prompt_tokens=prompt_tokens)


def fault(generation, max_tokens=3):
    return generation_fault(generation, prompt_tokens=3, max_tokens=max_tokens, vocab_size=100)


@pytest.mark.parametrize(
    ("generation", "max_tokens", "expected"),
    [
        (kept(), 3, ""),
        (kept("stop"), 3, ""),
        (kept("stop"), 9, ""),
        (kept("stop", ids=()), 9, ""),
        (kept("length"), 4, "cut off"),
        (kept("length"), 2, "too many tokens"),
        (kept("stop"), 2, "too many tokens"),
        (kept(""), 3, "no end"),
        (kept("deadline"), 3, "no end"),
        (kept(prompt_tokens=4), 3, "another prompt"),
        (kept(ids=((1, 2, 100),)), 3, "unknown tokens"),
        (CachedGeneration(), 3, "no end"),
    ],
)
def test_only_a_whole_answer_to_this_prompt_is_believed(generation, max_tokens, expected):
    assert fault(generation, max_tokens) == expected


@given(st.lists(st.lists(st.integers(0, 99), max_size=3), max_size=4))
def test_in_one_chunk_it_is_the_same_answer(rows):
    before = kept("stop", ids=rows)
    after = in_one_chunk(before)
    (chunk,) = after.chunks
    assert chunk.text == "".join(each.text for each in before.chunks)
    assert list(chunk.token_ids) == [token for row in rows for token in row]
    assert (after.finish_reason, after.prompt_tokens) == (before.finish_reason, before.prompt_tokens)


def tensors(**change):
    array = np.zeros((2, 3), np.float32)
    first, second = from_numpy("a", array), from_numpy("b", array)
    answer = InferResponse(model="m", revision="r1", outputs=[first, second])
    for name, value in change.items():
        if name in ("model", "revision"):
            setattr(answer, name, value)
        elif name == "shape":
            answer.outputs[1].shape[:] = value
        else:
            setattr(answer.outputs[1], name, value)
    return answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (tensors(), ""),
        (tensors(model="n"), "another model"),
        (tensors(revision="r0"), "another model"),
        (tensors(name="c"), "other outputs"),
        (tensors(dtype="I32"), "another dtype"),
        (tensors(dtype="F64"), "a broken tensor"),
        (tensors(dtype="X1"), "a broken tensor"),
        (tensors(data=b"x"), "a broken tensor"),
        (tensors(encoding="bf16"), "a broken tensor"),
        (tensors(shape=[3, 2]), "another number of rows"),
        (tensors(shape=[6]), "another number of rows"),
        (tensors(shape=[2**40, 2**40]), "a broken tensor"),
        (InferResponse(model="m", revision="r1"), "other outputs"),
    ],
    ids=lambda each: "" if isinstance(each, InferResponse) else each,
)
def test_only_the_outputs_asked_for_are_believed(answer, expected):
    wanted = [TensorSpec(name="a", dtypes=["F32"]), TensorSpec(name="b", dtypes=["F32"])]
    assert infer_fault(answer, model(), wanted, 2) == expected


def test_only_a_vector_for_each_text_is_believed():
    def answer(array, tokens=5):
        found = EmbedResponse(embeddings=from_numpy("", array))
        found.usage.prompt_tokens = tokens
        return found

    right = np.zeros((2, 4), np.float32)
    assert embed_fault(answer(right), 2, 5) == ""
    assert embed_fault(answer(right), 3, 5) == "another number of rows"
    assert embed_fault(answer(right, 6), 2, 5) == "another prompt"
    assert embed_fault(answer(right[0]), 4, 5) == "another shape"
    assert embed_fault(answer(right.astype(np.float64)), 2, 5) == "another shape"
    assert embed_fault(EmbedResponse(), 0, 0) == "another shape"
