"""The token at a position is a function of logits, settings, seed and position alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.sampler import choose, uniform

from stagemesh.v1.stage_pb2 import Sampling

settings = st.builds(
    Sampling,
    temperature=st.floats(0.125, 2, width=32),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    seed=st.integers(0, 2**64 - 1),
)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3


@given(settings, st.integers(0, 1000), st.integers(0, 2**31))
def test_the_choice_is_allowed_and_repeats(sampling: Sampling, data: int, position: int) -> None:
    row = logits(data)
    token = choose(row, sampling, position)
    assert token == choose(row.clone(), sampling, position)
    probs = torch.softmax(row.double() / sampling.temperature, -1)
    better = int((row > row[token.id]).sum())
    if sampling.top_k:
        assert better < sampling.top_k
    if 0 < sampling.top_p < 1:
        assert float(probs[row > row[token.id]].sum()) < sampling.top_p + 1e-9


def test_zero_temperature_is_greedy() -> None:
    row = logits(1)
    assert choose(row, Sampling(seed=5), 3).id == int(row.argmax())


def test_positions_and_seeds_give_different_numbers_spread_evenly() -> None:
    numbers = [uniform(seed, position) for seed in range(40) for position in range(50)]
    assert len(set(numbers)) == len(numbers)
    assert 0.47 < sum(numbers) / len(numbers) < 0.53


def test_frequencies_follow_the_distribution() -> None:
    row = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    counts = [0, 0, 0]
    for position in range(3000):
        counts[choose(row, Sampling(temperature=1, seed=11), position).id] += 1
    assert [round(count / 3000, 1) for count in counts] == [0.7, 0.2, 0.1]


def test_log_probabilities_are_of_the_model_not_of_the_filter() -> None:
    row = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    token = choose(row, Sampling(temperature=0.5, seed=1, logprobs=2), 0)
    assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-6)
    assert [a.id for a in token.alternatives] == [0, 1]


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([0.0, float("nan")]), Sampling(), 0)
