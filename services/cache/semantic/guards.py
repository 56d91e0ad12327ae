"""Whether two texts may have the same answer, as far as their words can say. Pure.

A guard never lets a hit pass by itself: it only takes pairs out, whatever their similarity and whatever was measured.
"""

import re
from enum import StrEnum

from . import lexicon
from .words import Form, Reading, lemma


class Kind(StrEnum):
    """How two texts relate. Pairs of one kind share what is measured about them."""

    SAME = "same"
    """Every word is accounted for: spelling, order of phrases, politeness or synonyms differ."""
    LOOSE = "loose"
    """Words differ of which nothing is known. Served only where the operator allows it and evidence bounds it."""
    VETO = "veto"
    """A number, a negation, a name, an order of words or the question itself differs."""


_DIGIT = re.compile(r"\d")
_STRICT = (
    lexicon.words(
        "all any some most few many several both either neither every only half almost exactly least over under always "
        "sometimes usually often rarely seldom never more less fewer another other again still yet even and or but "
        "my your his her its our their mine yours i you he she it we they me him us them myself today tomorrow "
        "yesterday tonight now currently formerly previously before after first last next previous early late"
    )
    | lexicon.PREPOSITIONS
    | lexicon.NEGATIONS
    | lexicon.QUESTIONS
)
_OPPOSITES = tuple(
    frozenset(lemma(word) for word in pair.split("/"))
    for pair in sorted(
        lexicon.words(
            "enable/disable on/off gain/lose largest/smallest large/small highest/lowest high/low advantage/disadvantage "
            "pro/con pros/cons install/uninstall increase/decrease raise/lower best/worst good/bad better/worse open/close "
            "upload/download maximum/minimum oldest/newest old/new old/young cheapest/expensive cheap/expensive lock/unlock "
            "subscribe/unsubscribe first/last buy/sell encrypt/decrypt zip/unzip mute/unmute ascending/descending "
            "alive/dead legal/illegal rising/falling rise/fall love/hate add/remove block/unblock success/failure "
            "strong/weak hottest/coldest hot/cold approved/banned freeze/thaw easy/hard brighter/darker winner/loser win/lose "
            "left/right benefit/risk import/export login/logout start/stop begin/end push/pull send/receive lend/borrow "
            "accept/reject allow/forbid allow/deny true/false male/female man/woman mother/father boy/girl husband/wife "
            "brother/sister son/daughter king/queen north/south east/west summer/winter day/night morning/evening "
            "am/pm fast/slow faster/slower long/short tall/short heavy/light wet/dry full/empty rich/poor public/private "
            "inner/outer input/output parent/child teacher/student buyer/seller cause/effect safe/dangerous healthy/unhealthy "
            "edible/inedible valid/invalid secure/insecure soluble/insoluble birth/death gold/silver red/white black/white "
            "brown/white import/export melting/boiling plus/minus multiply/divide add/subtract lighter/heavier"
        )
    )
)


def compare(one: Reading, other: Reading) -> tuple[Kind, str]:
    """How two texts relate, and why when they are not the same: "number", "negation", "order", "question", ..."""
    if one.forms == other.forms:
        return (Kind.SAME, "") if one.forms else (Kind.VETO, "empty")
    reason = _why(one, other)
    return (Kind.LOOSE, reason) if reason == "words" else (Kind.VETO, reason)


def _why(one: Reading, other: Reading) -> str:
    mine, theirs = _counted(one.forms), _counted(other.forms)
    lacking, beyond = mine - theirs, theirs - mine
    differ = lacking | beyond
    if any(_DIGIT.search(word) for word, _ in differ):
        return "number"
    words = {word for word, _ in differ}
    if any(word in lexicon.NEGATIONS or word.endswith("n't") for word in words):
        return "negation"
    if any(word.startswith(("\x01", "^")) for word in words):
        return "quoted"
    if [form[0] for form in one.forms] != [form[0] for form in other.forms]:
        return "question"
    if [form[1] for form in one.forms] != [form[1] for form in other.forms]:
        return "tense"
    if not differ:
        return "order"
    for pair in _OPPOSITES:
        if pair & {word for word, _ in lacking} and pair & {word for word, _ in beyond}:
            return "opposite"
    if words & _STRICT:
        return "function"
    return "words"


def _counted(forms: tuple[Form, ...]) -> set[tuple[str, int]]:
    """Every word with its number among those like it."""
    counts: dict[str, int] = {}
    found = set()
    for _, _, core, segments in forms:
        for word in (*core, *(word for segment in segments for word in segment)):
            counts[word] = counts.get(word, 0) + 1
            found.add((word, counts[word]))
    return found
