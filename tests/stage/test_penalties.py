"""Bias, held ends, penalties and filters: what transformers' own processors make of the same logits, and laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.stage.history import History, needs_history, tell_history
from stagemesh.services.stage.sampler import choose, distribution, hold, penalised
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stagemesh.v1.stage_pb2 import Sampling, StepOpen

VOCAB = 60
ids = st.integers(0, VOCAB - 1)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.25, 2, width=32),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.sampled_from([0.0, 0.2, 0.7, 0.95]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([0.0, 0.5, 1.0, 1.25, 3.0]),
    frequency_penalty=st.sampled_from([0.0, -1.5, 0.25, 2.0]),
    presence_penalty=st.sampled_from([0.0, -0.5, 1.75]),
    logit_bias=st.dictionaries(ids, st.sampled_from([-100.0, -1.5, 0.25, 2.0, 100.0]), max_size=4),
    held_ids=st.lists(ids, max_size=3),
    held_before=st.integers(0, 40),
)
sequences = st.tuples(st.lists(ids, min_size=1, max_size=12), st.lists(ids, max_size=20))


def row(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def opening(sampling: Sampling, tokens: list[int], prompt_tokens: int) -> StepOpen:
    made = StepOpen(sampling=sampling)
    tell_history(made, tokens, prompt_tokens)
    return made


def history(sampling: Sampling, prompt: list[int], generated: list[int]) -> History | None:
    """As the last stage has it: the beginning of the output from a recovery, the rest from steps."""
    if not needs_history(sampling):
        return None
    told = len(generated) // 2
    made = History(opening(sampling, prompt + generated[:told], len(prompt)))
    for token in generated[told:]:
        made.add([token])
    return made


def reference(
    logits: torch.Tensor, sampling: Sampling, prompt: list[int], generated: list[int]
) -> torch.Tensor:
    """Scores before temperature, by transformers' processors and, where it has none, by OpenAI's formula."""
    first = LogitsProcessorList()
    if sampling.logit_bias:
        first.append(
            SequenceBiasLogitsProcessor({(token,): bias for token, bias in sampling.logit_bias.items()})
        )
    if sampling.held_ids and len(prompt) + len(generated) < sampling.held_before:
        first.append(SuppressTokensLogitsProcessor(list(sampling.held_ids)))
    if sampling.repetition_penalty:
        first.append(RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty))
    scores = first(torch.tensor([prompt + generated]), logits.clone()[None])[0]
    for token in set(generated):
        scores[token] -= generated.count(token) * sampling.frequency_penalty + sampling.presence_penalty
    return scores


@settings(max_examples=300)
@given(samplings, sequences, st.integers(0, 2**31))
def test_scores_and_probabilities_are_those_of_transformers(
    sampling: Sampling, sequence: tuple[list[int], list[int]], data: int
) -> None:
    prompt, generated = sequence
    logits = row(data)
    before = logits.clone()
    held = hold(logits, sampling, len(prompt) + len(generated))
    scores = penalised(held, sampling, history(sampling, prompt, generated))
    assert torch.equal(logits, before)
    expected = reference(logits, sampling, prompt, generated)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)

    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    probs = distribution(scores, sampling)
    probs /= probs.sum()
    warped = warpers(torch.tensor([prompt]), scores.double()[None])[0]
    torch.testing.assert_close(probs, torch.softmax(warped, -1), rtol=0, atol=1e-6)
    assert float(probs.sum()) == pytest.approx(1)
    token = choose(logits, sampling, len(prompt) + len(generated), history(sampling, prompt, generated))
    assert probs[token.id] > 0


@settings(max_examples=200)
@given(samplings, sequences, st.integers(0, 2**31), st.booleans())
def test_greedy_is_the_largest_score_and_so_is_top_k_of_one(
    sampling: Sampling, sequence: tuple[list[int], list[int]], data: int, ties: bool
) -> None:
    prompt, generated = sequence
    logits = row(data).round() if ties else row(data)
    position = len(prompt) + len(generated)
    one = Sampling()
    one.CopyFrom(sampling)
    one.top_k = 1
    greedy = Sampling()
    greedy.CopyFrom(sampling)
    greedy.temperature = 0
    known = history(sampling, prompt, generated)
    chosen = choose(logits, greedy, position, known).id
    assert choose(logits, one, position, known).id == chosen
    if not ties:
        assert chosen == int(reference(logits, sampling, prompt, generated).argmax())


def play(sampling: Sampling, tokens: list[int], prompt_tokens: int, count: int, model: int) -> list[int]:
    """Generate: the "model" gives logits that depend on the whole sequence."""
    known = History(opening(sampling, tokens, prompt_tokens)) if needs_history(sampling) else None
    tokens = list(tokens)
    for number in range(count):
        if number and known is not None:
            known.add(tokens[-1:])  # what the decode step brings
        seen = torch.Generator().manual_seed(hash((model, *tokens)) % 2**31)
        logits = torch.randn(VOCAB, generator=seen)
        tokens.append(choose(logits, sampling, len(tokens), known).id)
    return tokens


@settings(max_examples=60)
@given(samplings, st.lists(ids, min_size=1, max_size=8), st.integers(1, 11), st.integers(0, 1000))
def test_a_session_that_is_taken_up_elsewhere_goes_on_with_the_same_tokens(
    sampling: Sampling, prompt: list[int], at: int, model: int
) -> None:
    whole = play(sampling, prompt, len(prompt), 12, model)
    assert play(sampling, prompt, len(prompt), 12, model) == whole
    resumed = whole[: len(prompt) + at]
    assert play(sampling, resumed, len(prompt), 12 - at, model) == whole


def test_a_history_is_told_only_where_a_penalty_needs_it() -> None:
    assert opening(Sampling(), [1, 2, 3], 2) == StepOpen(sampling=Sampling())
    assert not needs_history(Sampling(repetition_penalty=1))
    presence = opening(Sampling(presence_penalty=1), [7, 7, 8, 9, 9], 3)
    assert (list(presence.prompt_token_ids), list(presence.generated_token_ids)) == ([], [9, 9])
    both = opening(Sampling(repetition_penalty=2), [7, 7, 8, 9, 9], 3)
    assert (list(both.prompt_token_ids), list(both.generated_token_ids)) == ([7, 8], [9, 9])


def test_an_end_that_is_held_back_comes_when_nothing_else_is_left() -> None:
    logits = torch.tensor([1.0, 2.0])
    assert choose(logits, Sampling(held_ids=[1], held_before=5), 4).id == 0
    assert choose(logits, Sampling(held_ids=[1], held_before=5), 5).id == 1
    assert choose(logits, Sampling(held_ids=[0, 1], held_before=5), 4).id == 1


def test_log_probabilities_are_of_the_model_not_of_the_penalties() -> None:
    logits = torch.log(torch.tensor([0.6, 0.4]))
    token = choose(logits, Sampling(logprobs=1, logit_bias={1: 100.0}), 0)
    assert token.id == 1
    assert token.logprob == pytest.approx(math.log(0.4), abs=1e-6)
