"""Tokens to text, a few at a time: pure; the tokenizer's decoder comes in as a function."""

from collections.abc import Callable, Collection, Iterable

_REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character is three bytes at most, and shows as one to three replacement characters.
_UNFINISHED = 3
# Tokens without a character boundary before a boundary is searched for: text of invalid bytes only.
_SEARCH_AFTER = 64


class Detokenizer:
    """Incremental decoding with a window of the last tokens, so that the cost per token stays the same.

    The window starts at the tokens that were last decided, because a decoder treats the first token of a
    text in its own way (a leading blank is dropped, for instance). The pieces put together are what `decode`
    gives for all tokens; half a UTF-8 character never goes out.
    """

    def __init__(self, decode: Callable[[list[int]], str], skip: Collection[int] = ()) -> None:
        """`decode` turns ids into text; ids in `skip` (special tokens) are left out."""
        self._decode = decode
        self._skip = frozenset(skip)
        self._window: list[int] = []
        # Tokens of the window that end at a character boundary and are out, and characters of it that are out.
        self._boundary = 0
        self._out = 0

    def __repr__(self) -> str:
        return f"Detokenizer(window={len(self._window)}, pending={len(self._window) - self._boundary})"

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens; return the text that became final with them."""
        fresh = [token for token in ids if token not in self._skip]
        if not fresh:
            return ""
        self._window += fresh
        text = self._decode(self._window)
        if not text.endswith(_REPLACEMENT):
            piece = text[self._out :]
            if piece:
                self._move(len(self._window))
            return piece
        unsure = min(_UNFINISHED, len(text) - len(text.rstrip(_REPLACEMENT)))
        piece = text[self._out : len(text) - unsure]
        self._out = max(self._out, len(text) - unsure)
        if len(self._window) - self._boundary > _SEARCH_AFTER:
            self._shorten(text)
        return piece

    def flush(self) -> str:
        """Return what is left: the text has ended, so an unfinished character stays a replacement character."""
        piece = self._decode(self._window)[self._out :] if self._window else ""
        self._window, self._boundary, self._out = [], 0, 0
        return piece

    def _move(self, boundary: int) -> None:
        """Everything before `boundary` is decided: keep only the last decided piece as context."""
        self._window = self._window[self._boundary :]
        self._boundary = boundary - self._boundary
        self._out = len(self._decode(self._window[: self._boundary]))

    def _shorten(self, text: str) -> None:
        """Find a place near the end where the text can be cut in two without changing, and go on from there."""
        for cut in range(len(self._window) - 1, len(self._window) - 9, -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            if head + tail == text and len(head) <= self._out:
                self._window, self._boundary, self._out = self._window[cut:], 0, self._out - len(head)
                return
