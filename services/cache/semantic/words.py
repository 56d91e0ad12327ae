"""A question as its words say it: what has to be the same on both sides before two may have one answer. Pure.

Vectors of sentences see what a text is about, and hardly see who does it to whom, how many there are, or whether it
is denied: "Which foods contain gluten?" and "Which foods don't" are more alike to an encoder than most paraphrases.
So each sentence is also read as words: spelling, contractions, polite openings and synonyms are evened out, and what
remains is its question, its tense and modality, and its content in order, cut where prepositions begin. Only what
begins with a preposition may stand elsewhere. Nothing is ever dropped because it is unknown: in a language
that `lexicon` does not know every word is content.
"""

import re
import unicodedata
from dataclasses import dataclass

from . import lexicon

_QUOTED = re.compile(r"\"([^\"]{1,200})\"|`([^`]{1,200})`|(?<![\w'])'([^']{1,200})'(?!\w)")
_SENTENCE = re.compile(r"(?<=[.?!;。？！])\s+|\n+|(?<=[。？！])")
_EDGES = ".,?!;:()¿¡…\"'“”«»。？！、，：；（）「」"
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_MEASURE = re.compile(r"([$€£¥]?)([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)([%°]?)-?([^\W\d_]*)")
_SPACELESS = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힯฀-๿]")
_QUOTE = "\x01"
_CAPITAL = "^"

Form = tuple[str, tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]
"""A sentence: its question, its tense and modality, its core, and what begins with a preposition, sorted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says, sentence by sentence, and all of its words in order."""

    forms: tuple[Form, ...]
    words: tuple[str, ...]


def read(text: str) -> Reading:
    """Read a text; never fails, in time proportional to its length."""
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    forms, words = [], []
    loud = text.isupper()
    for sentence in _SENTENCE.split(text):
        tokens = _tokens(sentence, loud)
        if tokens:
            form = _form(tokens)
            if any(form):
                forms.append(form)
                words.extend(tokens)
    return Reading(tuple(forms), tuple(words))


def lemma(word: str) -> str:
    """The word that stands for it and for those that mean the same."""
    same = lexicon.SAME.get(word)
    if same is not None:
        return same
    if (
        len(word) > 3
        and word.isascii()
        and word.endswith("s")
        and not word.endswith(("ss", "us", "is"))
        and word not in lexicon.KEEP_S
    ):
        stem = word[:-1]
        if word.endswith("ies") and len(word) > 4 and stem not in lexicon.SAME:
            stem = word[:-3] + "y"
        elif word.endswith(("ches", "shes", "sses", "xes", "zes", "toes")):
            stem = word[:-2]
        return lexicon.SAME.get(stem, stem)
    return word


def _tokens(sentence: str, loud: bool) -> list[str]:
    """Words in lower case, numbers as numbers, and what is quoted or looks like code as it is."""
    found: list[str] = []
    start = 0
    for quoted in _QUOTED.finditer(sentence):
        found += _plain(sentence[start : quoted.start()], loud, first=not found)
        inside = next(group for group in quoted.groups() if group is not None)
        found += [_QUOTE + part for part in inside.split()]
        start = quoted.end()
    found += _plain(sentence[start:], loud, first=not found)
    return _numbers(_phrases(_possessives(found)))


def _plain(text: str, loud: bool, *, first: bool) -> list[str]:
    found: list[str] = []
    for chunk in text.split():
        bare = chunk.strip(_EDGES)
        if not bare:
            # Signs by themselves are content: a < b; marks that end a sentence or part it are not.
            continue
        if _SPACELESS.search(bare):
            found += [each for each in bare if each not in _EDGES]
        elif _WORD.fullmatch(bare):
            found += _word(bare, loud, first=first and not found)
        elif (measure := _MEASURE.fullmatch(bare)) is not None:
            money, number, sign, unit = measure.groups()
            found.append(number.replace(",", "").lstrip("+"))
            ordinal = unit.lower() in ("st", "nd", "rd", "th")
            if ordinal or (unit == "s" and len(number) > 1):
                found[-1] += "th" if ordinal else "s"
            elif unit:
                # One letter is a unit whose case may count: 5 m and 5 M.
                found.append(unit if len(unit) < 3 and unit.upper() not in ("AM", "PM") else unit.lower())
            found += [lexicon.SIGNS[each] for each in (money, sign) if each]
        elif "/" in bare and all(_WORD.fullmatch(part) for part in bare.split("/")):
            found += [word for part in bare.split("/") for word in ("/", *_word(part, loud, first=False))][1:]
        else:
            found.append(_QUOTE + bare)
    return found


def _word(bare: str, loud: bool, *, first: bool) -> list[str]:
    lower = bare.lower()
    if lower in lexicon.CONTRACTIONS:
        return lexicon.CONTRACTIONS[lower].split()
    for ending, meant in (
        ("n't", "not"),
        ("'re", "are"),
        ("'ve", "have"),
        ("'ll", "will"),
        ("'m", "am"),
        ("'d", "would"),
    ):
        if lower.endswith(ending) and len(lower) > len(ending):
            return [lower[: -len(ending)], meant]
    if lower.endswith("'s"):
        return [*_word(bare[:-2], loud, first=first), "'s"]
    if "-" in lower:
        return [part for part in lower.split("-") if part]
    if not loud and bare != lower and bare != "I":
        # IT, US and WHO are no pronouns, and neither is the A of "hepatitis A" an article.
        little = lower in lexicon.ARTICLES | lexicon.BE | lexicon.QUESTIONS | lexicon.PREPOSITIONS | {
            "it", "us", "or", "and", "me", "so", "no", "not", "do", "he", "we", "pm", "of",
        }  # fmt: skip
        if bare.isupper() and little and (len(bare) > 1 or not first):
            return [lower if lower in ("am", "pm") else _CAPITAL + lower]
        if not first and lower in lexicon.HOMOGRAPHS:
            return [_CAPITAL + lower]
    return [lower]


def _possessives(tokens: list[str]) -> list[str]:
    """What belongs to somebody, as "capital of France" for "France's capital"."""
    if "'s" not in tokens:
        return tokens
    at = tokens.index("'s")
    begin = at
    while begin > 0 and not _ends_phrase(tokens[begin - 1]):
        begin -= 1
    end = at + 1
    while end < len(tokens) and not _ends_phrase(tokens[end]) and tokens[end] != "'s":
        end += 1
    owner, owned = tokens[begin:at], tokens[at + 1 : end]
    if not owner or not owned:
        return [*tokens[:at], "is", *_possessives(tokens[at + 1 :])]
    return _possessives([*tokens[:begin], *owned, "of", *owner, *tokens[end:]])


def _ends_phrase(token: str) -> bool:
    return (
        token in lexicon.PREPOSITIONS
        or token in lexicon.BE
        or token in lexicon.WAS
        or token in lexicon.MODALS
        or token in lexicon.QUESTIONS
        or token in ("and", "or", "of", "me", "not")
    )


def _phrases(tokens: list[str]) -> list[str]:
    text = " " + " ".join(tokens) + " "
    for several, one in lexicon.PHRASES:
        if f" {several} " in text:
            text = text.replace(f" {several} ", f" {one} ")
    return text.split()


def _numbers(tokens: list[str]) -> list[str]:
    """Numbers in words as digits: "twenty five" is 25, "two hundred" 200, "third" 3rd."""
    found: list[str] = []
    value: int | None = None
    for token in tokens:
        number = lexicon.NUMBERS.get(token)
        if number is not None and value is not None and value % 100 >= 20 and value % 10 == 0 and number < 10:
            value += number
            found[-1] = str(value)
        elif number is not None:
            value = number
            found.append(str(number))
        elif token in lexicon.SCALES and found and re.fullmatch(r"\d{1,15}", found[-1]):
            value = int(found[-1]) * lexicon.SCALES[token]
            found[-1] = str(value)
        else:
            value = None
            found.append(f"{lexicon.ORDINALS[token]}th" if token in lexicon.ORDINALS else token)
    return found


def _form(tokens: list[str]) -> Form:
    tokens = _without_politeness(tokens)
    if tokens and tokens[0] in ("convert", "translate"):
        tokens = ["to" if word == "into" else word for word in tokens]
    question, tokens = _question(tokens)
    modes: list[str] = []
    left: list[str] = []
    for token in tokens:
        if token in lexicon.WAS:
            modes.append("past")
        elif token in lexicon.MODALS:
            if lexicon.MODALS[token] and not (
                question == "how" and token in ("can", "could", "should", "would")
            ):
                modes.append(lexicon.MODALS[token])
        elif token in ("future", "possibly", "permittedly"):
            modes.append({"possibly": "can", "permittedly": "may"}.get(token, token))
        elif token not in lexicon.ARTICLES and token not in lexicon.BE and token not in lexicon.FILLERS:
            left.append(token)
    core, segments = _segments(left)
    return question, tuple(sorted(modes)), tuple(core), tuple(sorted(segments))


def _without_politeness(tokens: list[str]) -> list[str]:
    while tokens and tokens[0] in lexicon.FILLERS:
        tokens = tokens[1:]
    rest = [token for token in tokens[2:] if token not in lexicon.FILLERS]
    asked = tokens[0] in ("can", "could", "would", "will") if tokens else False
    if asked and len(tokens) > 2 and tokens[1] == "you" and rest and rest[0] in lexicon.REQUESTS:
        tokens = rest
    for opening in (["do", "you", "know"], ["i", "want", "to", "know"], ["i", "would", "like", "to", "know"]):
        after = tokens[len(opening) :]
        if tokens[: len(opening)] == opening and after and after[0] in lexicon.QUESTIONS:
            tokens = after
    if len(tokens) > 1 and tokens[0] in lexicon.REQUESTS and tokens[1] == "me":
        tokens = [tokens[0], *tokens[2:]]
    if len(tokens) > 1 and tokens[0] in lexicon.ASKING and tokens[1] in lexicon.QUESTIONS:
        tokens = tokens[1:]
    if tokens[-2:] == ["to", "me"] and tokens[0] in lexicon.ASKING:
        tokens = tokens[:-2]
    return tokens


def _question(tokens: list[str]) -> tuple[str, list[str]]:
    """What is asked for, and the rest of the sentence."""
    # "In Python, how do I ..." asks what "How do I ... in Python" does.
    if len(tokens) > 2 and tokens[0] in lexicon.PREPOSITIONS:
        for at, token in enumerate(tokens[1:], 1):
            if token in lexicon.QUESTIONS:
                if at > 1:  # "in which city" is a question by itself
                    tokens = [*tokens[at:], *tokens[:at]]
                break
    if not tokens:
        return "", tokens
    first = tokens[0]
    if first not in lexicon.QUESTIONS and tokens[-1] in lexicon.QUESTIONS:
        return _question([tokens[-1], *tokens[:-1]])
    if first == "how":
        return _how(tokens[1:])
    if first == "whom":
        first = "who"
    if first in ("what", "which"):
        return _what(tokens[1:])
    if first in lexicon.QUESTIONS:
        return first, tokens[1:]
    if first in lexicon.ASKING:
        return _what(tokens[2:] if tokens[1:2] == ["about"] and first == "tell" else tokens[1:])
    if first in lexicon.MODALS or first in lexicon.BE or first in lexicon.WAS:
        return "whether", tokens
    return "", tokens


def _how(rest: list[str]) -> tuple[str, list[str]]:
    if rest and (rest[0] in lexicon.DEGREES):
        degree = rest[0]
        if degree == "much" and rest[-1] == "cost":  # "how much is it" asks so, too
            rest = rest[:-1]
        return f"how {lexicon.SAME.get(degree, degree)}", rest[1:]
    if rest and rest[0] in ("do", "can", "could", "should", "would", "to"):
        generic = (len(rest) > 1 and rest[1] in lexicon.GENERIC) or rest[:2] in (
            ["do", "1"],
            ["can", "1"],
            ["should", "1"],
        )
        return "how", rest[2:] if generic else rest[1:] if rest[0] == "to" else rest
    return "how", rest


def _what(rest: list[str]) -> tuple[str, list[str]]:
    bare = [token for token in rest if token not in lexicon.ARTICLES and token not in lexicon.BE]
    if bare[:2] == ["way", "to"] and len(bare) > 2:
        return "how", bare[2:]
    if bare[:2] == ["meaning", "of"] and len(bare) > 2:
        return "what", bare[2:]
    if rest[:1] == ["does"] and rest[-1:] == ["mean"] and len(rest) > 2:
        return "what", rest[1:-1]
    return "what", rest


def _segments(tokens: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    core: list[str] = []
    segments: list[list[str]] = []
    for token in tokens:
        if token in lexicon.PREPOSITIONS:
            segments.append([token])
        elif segments:
            segments[-1].append(lemma(token))
        else:
            core.append(lemma(token))
    return core, [tuple(segment) for segment in segments]
