import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.heads import activate, classify_activation, label_names, rank_activation

from stagemesh.errors import CheckpointError

WIDE = st.floats(-(2.0**99), 2.0**99, width=32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sentence_transformers": {"version": "5"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid"),
    ],
)
def test_a_rankers_own_activation(config, expected):
    assert rank_activation(config) == expected


def test_an_unknown_activation_is_refused_not_guessed():
    with pytest.raises(CheckpointError, match=r"my\.Own"):
        rank_activation({"sentence_transformers": {"activation_fn": "my.Own"}})


@pytest.mark.parametrize(
    ("problem", "labels", "expected"),
    [
        (None, 1, "sigmoid"),
        (None, 3, "softmax"),
        ("single_label_classification", 2, "softmax"),
        ("multi_label_classification", 4, "sigmoid"),
        ("regression", 1, "identity"),
    ],
)
def test_classes_by_the_kind_of_problem(problem, labels, expected):
    assert classify_activation({"problem_type": problem}, labels) == expected


@given(st.lists(st.lists(WIDE, min_size=3, max_size=3), min_size=1, max_size=5))
def test_scores_stay_finite_and_in_order(rows):
    logits = np.array(rows, np.float32)
    for name in ("sigmoid", "softmax", "tanh"):
        scores = activate(logits, name)
        assert np.isfinite(scores).all()
        order = np.argsort(logits, axis=1, kind="stable")
        assert (np.diff(np.take_along_axis(scores, order, 1), axis=1) >= 0).all()
    assert np.allclose(activate(logits, "softmax").sum(1), 1)
    assert (activate(logits, "identity") == logits).all()


def test_known_values():
    assert activate(np.array([[2.0]]), "sigmoid")[0, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert activate(np.array([[1.0, 3.0]]), "softmax")[0, 1] == pytest.approx(1 / (1 + math.exp(-2)))


def test_labels_of_the_spec_then_of_the_checkpoint_then_by_number():
    config = {"id2label": {"0": "no", "1": "yes"}}
    assert label_names(["bad", "good"], config, 2) == ["bad", "good"]
    assert label_names([], config, 2) == ["no", "yes"]
    assert label_names(["one"], {}, 2) == ["LABEL_0", "LABEL_1"]
