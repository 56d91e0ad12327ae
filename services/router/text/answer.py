"""Tokens of one answer to the text that is final with them: end tokens, stop strings, `min_tokens`. Pure.

An answer that goes on after a break is told once what had arrived of it, and then gives the text from there on: not a
character twice, none left out, whichever way the tokens were cut into chunks before.
"""

from collections.abc import Collection, Sequence

from stagemesh.errors import InvalidArgument

from .model import ModelText
from .tokenizers import StopStrings


class AnswerText:
    """Decodes and cuts the text of one answer.

    `ends` are the tokens that end it and are no part of the text; nothing ends it before `min_tokens`.
    """

    def __init__(
        self, text: ModelText, stop: Sequence[str], ends: Collection[int], *, min_tokens: int, max_tokens: int
    ) -> None:
        self.tokens = 0
        self._text = text
        self._detokenizer = text.detokenizer()
        self._stops = StopStrings(stop)
        self._ends = frozenset(ends)
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        # Characters that the caller has already, and text from before the break that it has not.
        self._delivered = 0
        self._waiting = ""

    def __repr__(self) -> str:
        return f"AnswerText(tokens={self.tokens}, delivered={self._delivered}, waiting={len(self._waiting)})"

    def resume(self, ids: Sequence[int], characters: int, field: str) -> tuple[str, str]:
        """Take in what had arrived before a break, once, before anything else.

        Returns text and finish reason of an answer that has all of its tokens already, else two empty texts: what
        had not arrived comes with the next `push`. Raises `InvalidArgument` (`field`.characters) when the tokens do
        not have so many.
        """
        if characters > len(self._text.decode(ids)):
            raise InvalidArgument(
                f"{field}.characters: {characters} are more than the {len(ids)} tokens have",
                field=f"{field}.characters",
            )
        finish = ""  # as the head decides it
        if ids and ids[-1] in self._ends:
            finish = "stop"
        elif len(ids) >= self._max_tokens:
            finish = "length"
        self._delivered = characters
        text, finish = self.push(ids, finish)
        if finish:
            return text, finish
        self._waiting = text
        return "", ""

    def push(self, tokens: Sequence[int], finish: str) -> tuple[str, str]:
        """Add tokens, with the reason if these are the last ones; the text that is final now, and the reason."""
        ids = list(tokens)
        early = max(0, self._min_tokens - self.tokens)
        self.tokens += len(ids)
        if finish == "stop" and ids and ids[-1] in self._ends:
            ids.pop()
        text = self._detokenizer.push(ids[:early])
        piece, stopped = self._stops.push(self._detokenizer.push(ids[early:]))
        text += piece
        if finish and not stopped:
            rest, stopped = self._stops.push(self._detokenizer.flush())
            text += rest + ("" if stopped else self._stops.flush())
        return self._undelivered(text), "stop" if stopped else finish

    def _undelivered(self, text: str) -> str:
        cut = min(self._delivered, len(text))
        self._delivered -= cut
        text, self._waiting = self._waiting + text[cut:], ""
        return text
