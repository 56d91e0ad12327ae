"""Whether a kept answer would have been the right one, where the real one was computed too. Pure.

A hit is *false* unless the two answers are shown to say the same:

- their texts are the same but for case, white space and punctuation, or their words are (`words.read`); or
- their vectors, made by the model's encoder, have a cosine of `ALIKE` or more, and they have the same numbers, the same
  names, and as many negations.

Everything else counts as false, also what may only be put differently: such a mistake makes the estimate too high and
costs hits; the opposite would serve wrong answers.
"""

import re
import unicodedata

import numpy as np
import numpy.typing as npt

from . import lexicon
from .words import read

ALIKE = 0.9
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<![.!?:]\s)(?<!^)\b[A-ZÀ-ÖØ-Þ][\w'-]*")
_NOT_TEXT = re.compile(r"[\W_]+")


def same_answer(
    kept: str,
    real: str,
    kept_vector: npt.NDArray[np.float32] | None = None,
    real_vector: npt.NDArray[np.float32] | None = None,
) -> tuple[bool, str]:
    """Whether they say the same, and how that shows or what speaks against it. Vectors are [d] of any length."""
    if _plain(kept) == _plain(real) and bool(_plain(kept)) | (kept.strip() == real.strip()):
        return True, "the same text"
    mine, theirs = read(kept), read(real)
    if mine.forms and mine.forms == theirs.forms:
        return True, "the same words"
    if kept_vector is None or real_vector is None or kept_vector.shape != real_vector.shape:
        return False, "other texts"
    if set(_DIGITS.findall(kept)) != set(_DIGITS.findall(real)):
        return False, "other numbers"
    if _negations(mine.words) != _negations(theirs.words):
        return False, "other negations"
    if _names(kept) != _names(real):
        return False, "other names"
    lengths = float(np.linalg.norm(kept_vector) * np.linalg.norm(real_vector))
    similarity = float(kept_vector @ real_vector) / lengths if lengths > 0 else 0.0
    return (True, "alike") if similarity >= ALIKE else (False, "not alike")


def _plain(text: str) -> str:
    return _NOT_TEXT.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _negations(words: tuple[str, ...]) -> int:
    return sum(word in lexicon.NEGATIONS or word.endswith("n't") for word in words)


def _names(text: str) -> set[str]:
    return {name.lower() for name in _NAME.findall(text)} - {"i"}
