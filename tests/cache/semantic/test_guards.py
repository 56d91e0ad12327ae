"""Words: what may differ between two questions with one answer, and what must not."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from stagemesh.services.cache.semantic.guards import Kind, compare
from stagemesh.services.cache.semantic.judge import same_answer
from stagemesh.services.cache.semantic.words import read

from .pairs import PARAPHRASES

import numpy as np  # isort: skip

QUESTIONS = sorted({text for pair in PARAPHRASES for text in (pair["one"], pair["other"])})


def kind(one, other):
    return compare(read(one), read(other))[0]


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_read_and_compared(one, other):
    assert compare(read(one), read(other))[0] == compare(read(other), read(one))[0]
    if read(one).forms:
        assert kind(one, one) is Kind.SAME


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("Which foods contain gluten?", "Which foods don't contain gluten?", "negation"),
        ("What is 10% of 250?", "What is 20% of 250?", "number"),
        ("Does a dog chase a cat?", "Does a cat chase a dog?", "order"),
        ("Fly from Rome to Oslo?", "Fly from Oslo to Rome?", "order"),
        ("Can I smoke here?", "Should I smoke here?", "tense"),
        ("When did it start?", "Why did it start?", "question"),
        ("How do I buy a house?", "How do I sell a house?", "opposite"),
        ("Spell 'affect'", "Spell 'effect'", "quoted"),
        ("Is my car late?", "Is your car late?", "function"),
    ],
)
def test_what_takes_a_pair_out_says_why(one, other, why):
    assert compare(read(one), read(other)) == (Kind.VETO, why)


@given(st.sampled_from(QUESTIONS), st.data())
def test_a_word_more_is_never_the_same(question, data):
    words = question.split()
    at = data.draw(st.integers(1, len(words)))
    word = data.draw(
        st.sampled_from(["zebra", "not", "never", "7", "only", "Paris", "without", "früher", "дом"])
    )
    assert kind(question, " ".join([*words[:at], word, *words[at:]])) is not Kind.SAME


@given(st.sampled_from(QUESTIONS), st.data())
def test_a_content_word_in_the_place_of_another_is_never_the_same(question, data):
    words = question.split()
    at = data.draw(st.integers(0, len(words) - 1))
    assume(len(words[at].strip("?.,'")) > 4 and read(question).forms)
    changed = " ".join([*words[:at], "zebra", *words[at + 1 :]])
    # Only what is said out of politeness may be another word and mean the same.
    assume(words[at].lower() not in ("could", "please", "please,"))
    assert kind(question, changed) is not Kind.SAME


@pytest.mark.parametrize(
    ("kept", "real", "same"),
    [
        ("Paris.", "paris", True),
        ("The capital of France is Paris.", "France's capital is Paris.", True),
        ("It is 42.", "It is 43.", False),
        ("", "", True),
        ("", "x", False),
        ("?", "!", False),
    ],
)
def test_without_vectors_only_the_same_words_are_the_same(kept, real, same):
    assert same_answer(kept, real)[0] is same


def test_with_vectors_numbers_names_and_negations_still_count():
    near, far = np.array([1, 0.1], np.float32), np.array([0, 1], np.float32)
    assert same_answer("Turn it off and on again.", "Switch it off, then on.", near, near)[0]
    assert not same_answer("Turn it off and on again.", "Switch it off, then on.", near, far)[0]
    for kept, real, why in (
        ("It takes 3 days.", "It takes 4 days.", "numbers"),
        ("That is allowed here.", "That is not allowed here.", "negations"),
        ("You should ask Alice.", "You should ask Bob.", "names"),
    ):
        assert same_answer(kept, real, near, near) == (False, f"other {why}")
