"""Resume tokens, and the text of an answer that goes on after a break. Pure."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.router.resume import (
    ResumeTokens,
    answers_so_far,
    check_same,
    content_digest,
    load_resume_key,
)
from stagemesh.services.router.text.answer import AnswerText
from stagemesh.services.router.text.detokenize import Detokenizer

from stagemesh.errors import ConfigError, FailedPrecondition, InvalidArgument
from stagemesh.v1 import inference_pb2, stage_pb2

from .specs import model

CONTENT = bytes(range(16))
END = 256


def issued(tokens=None, tenant="one", **spec):
    tokens = ResumeTokens() if tokens is None else tokens
    return tokens.issue(model(**spec), tenant, seed=2**63 - 5, max_tokens=77, content=CONTENT)


# ---- the token ----


@pytest.mark.parametrize("key", [b"", b"k" * 32])
def test_another_router_reads_what_one_has_issued(key):
    token = issued(ResumeTokens(key))
    drawn = ResumeTokens(key).read(token, model(), "one")
    assert (drawn.seed, drawn.max_tokens) == (2**63 - 5, 77)
    check_same(drawn, CONTENT)
    with pytest.raises(InvalidArgument, match="another request") as caught:
        check_same(drawn, bytes(16))
    assert caught.value.field == "resume.token"


@pytest.mark.parametrize("key", [b"", b"k" * 32])
def test_no_byte_of_a_token_may_change(key):
    token = issued(ResumeTokens(key))
    reader = ResumeTokens(key)
    for wrong in [b"", token[:-1], token + b"x", b"\0" * len(token), b"x" * 1000]:
        with pytest.raises((InvalidArgument, FailedPrecondition)):
            reader.read(wrong, model(), "one")
    for at in range(len(token)):
        changed = token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]
        with pytest.raises((InvalidArgument, FailedPrecondition)) as caught:
            reader.read(changed, model(), "one")
        assert caught.value.field == "resume.token"


def test_with_a_key_nobody_else_makes_a_token():
    for maker, reader in ((b"", b"k" * 32), (b"j" * 32, b"k" * 32), (b"k" * 32, b"")):
        with pytest.raises(InvalidArgument, match="not issued by"):
            ResumeTokens(reader).read(issued(ResumeTokens(maker)), model(), "one")


def test_a_token_holds_for_one_tenant_and_one_revision():
    with pytest.raises(InvalidArgument, match="another tenant"):
        ResumeTokens().read(issued(), model(), "two")
    with pytest.raises(FailedPrecondition, match="another revision"):
        ResumeTokens().read(issued(), model(revision="r2"), "one")
    with pytest.raises(FailedPrecondition, match="version 9"):
        ResumeTokens().read(b"\x09" + issued()[1:], model(), "one")


def test_a_token_shows_neither_tenant_nor_key():
    token = issued(ResumeTokens(b"secret-secret-secret"), tenant="tenant-name")
    assert b"tenant-name" not in token
    assert b"secret" not in token
    assert len(token) < 100


def test_the_key_comes_from_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef\n")
    assert load_resume_key(file) == b"0123456789abcdef"
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="at least 16"):
        load_resume_key(file)
    with pytest.raises(ConfigError, match="cannot read"):
        load_resume_key(tmp_path / "none")


def test_whatever_decides_the_answer_is_in_the_digest():
    base = {
        "model": "m",
        "token_ids": [1, 2],
        "sampling": stage_pb2.Sampling(seed=1, temperature=1.0),
        "stop": ["a", "b"],
        "stop_token_ids": [7],
        "numbers": (1, 8, 0, 0),
    }
    changes = [
        {"model": "n"},
        {"token_ids": [1, 3]},
        {"token_ids": [1, 2, 0]},
        {"sampling": stage_pb2.Sampling(seed=2, temperature=1.0)},
        {"stop": ["ab"]},
        {"stop": []},
        {"stop_token_ids": [8]},
        {"numbers": (1, 9, 0, 0)},
    ]
    found = [content_digest(**base), *(content_digest(**{**base, **change}) for change in changes)]
    assert len(set(found)) == len(found)
    assert content_digest(**base) == found[0]


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ([{"index": 2}], "resume.answers[0].index"),
        ([{"index": 1}, {"index": 1}], "resume.answers[1].index"),
        ([{"token_ids": [1] * 9}], "resume.answers[0].token_ids"),
        ([{"index": 1, "token_ids": [100]}], "resume.answers[0].token_ids"),
        ([{"finished": True}, {"index": 1, "finished": True}], "resume.answers"),
    ],
)
def test_what_arrived_is_checked(answers, field):
    resume = inference_pb2.Resume(answers=[inference_pb2.AnswerSoFar(**each) for each in answers])
    with pytest.raises(InvalidArgument) as caught:
        answers_so_far(resume, 2, 8, model())
    assert caught.value.field == field


def test_answers_that_had_not_begun_may_be_left_out():
    resume = inference_pb2.Resume(answers=[inference_pb2.AnswerSoFar(index=1, token_ids=[5])])
    assert [list(each.token_ids) for each in answers_so_far(resume, 3, 8, model())] == [[], [5], []]


# ---- the text ----


class Bytes:
    """A text side whose tokens are bytes; 256 ends the text."""

    def decode(self, ids):
        return bytes(token for token in ids if token < END).decode(errors="replace")

    def detokenizer(self):
        return Detokenizer(self.decode, {END})


def answer_text(stop=(), min_tokens=0, max_tokens=1000):
    return AnswerText(Bytes(), list(stop), [END], min_tokens=min_tokens, max_tokens=max_tokens)


def told(answer, ids, sizes, last):
    """Push `ids` in chunks; the text, as the caller of an answer gathers it, and the reason."""
    text, at = "", 0
    for size in sizes:
        chunk = ids[at : at + size]
        at += len(chunk)
        piece, finish = answer.push(chunk, last if at >= len(ids) else "")
        text += piece
        if finish or at >= len(ids):
            return text, finish
    raise AssertionError("too few sizes")


CHARACTERS = st.text(alphabet="abcd€𝄞é ", min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    whole=CHARACTERS,
    stop=st.lists(st.text(alphabet="abcd€ ", min_size=1, max_size=4), max_size=2),
    broken=st.integers(0, 30),
    invalid=st.integers(0, 2),
    min_tokens=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_a_break_anywhere_changes_no_character(whole, stop, broken, invalid, min_tokens, seed):
    rng = random.Random(seed)
    ids = [*list(whole.encode()), *([0xE2] * invalid)]
    if rng.random() < 0.5:
        ids.append(END)
        last = "stop"
    else:
        last = "length"

    def sizes():
        return [rng.randint(1, 3) for _ in range(len(ids) + 1)]

    wanted, reason = told(answer_text(stop, min_tokens, len(ids)), ids, sizes(), last)
    # What a first router sent until it broke, cut into chunks in its own way.
    first = answer_text(stop, min_tokens, len(ids))
    arrived, at = "", 0
    for size in sizes():
        if at + size > min(broken, len(ids) - 1):
            break
        piece, finish = first.push(ids[at : at + size], "")
        arrived, at = arrived + piece, at + size
        if finish:  # it was over before it broke
            assert (arrived, finish) == (wanted, reason)
            return
    second = answer_text(stop, min_tokens, len(ids))
    text, finish = second.resume(ids[:at], len(arrived), "resume.answers[0]")
    assert (text, finish) == ("", "")
    rest, finish = told(second, ids[at:], sizes(), last)
    assert arrived + rest == wanted
    assert finish == reason


def test_half_a_character_and_the_start_of_a_stop_text_survive_a_break():
    ids = list("ab€ stoop".encode())
    first = answer_text(["stop"])
    assert first.push(ids[:3], "") == ("ab", "")  # one of the three bytes of the euro sign
    second = answer_text(["stop"])
    second.resume(ids[:3], 2, "r")
    assert second.push(ids[3:8], "") == ("€ ", "")  # "st" may become a stop text
    third = answer_text(["stop"])
    third.resume(ids[:8], 4, "r")
    assert third.push(ids[8:], "length") == ("stoop", "length")
    stopped = answer_text(["stop"])
    stopped.resume(ids[:8], 4, "r")
    assert stopped.push(list(b"op!"), "") == ("", "stop")


@pytest.mark.parametrize(
    ("ids", "characters", "settings", "wanted"),
    [
        ([*b"ab", END], 2, {}, ("", "stop")),
        ([*b"ab", END], 1, {}, ("b", "stop")),
        ([*b"ab", END], 1, {"min_tokens": 9}, ("b", "stop")),  # with nothing else to say it comes early
        ([*b"ab", END], 2, {"max_tokens": 3}, ("", "stop")),
        ([*b"abc"], 3, {"max_tokens": 3}, ("", "length")),
        ([*b"ab\xe2"], 2, {"max_tokens": 3}, ("\ufffd", "length")),
        ([*b"ab x"], 2, {"stop": ["x"]}, (" ", "stop")),
        ([*b"abst"], 2, {"stop": ["stop"], "max_tokens": 4}, ("st", "length")),
        ([*b"abst"], 2, {"stop": ["stop"]}, ("", "")),
        ([], 0, {}, ("", "")),
    ],
)
def test_an_answer_that_had_all_of_its_tokens_ends_at_once(ids, characters, settings, wanted):
    assert answer_text(**settings).resume(ids, characters, "r") == wanted


def test_more_characters_than_the_tokens_have():
    with pytest.raises(InvalidArgument) as caught:
        answer_text().resume([*b"ab"], 3, "resume.answers[1]")
    assert caught.value.field == "resume.answers[1].characters"
