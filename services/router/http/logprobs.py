"""Log probabilities in OpenAI's two shapes. Pure."""

from collections.abc import Callable, Iterable
from typing import Any

from stagemesh.v1.stage_pb2 import Token

TokenText = Callable[[int], str]


class CompletionLogprobs:
    """The legacy shape of completions, whose text offsets go on from chunk to chunk."""

    def __init__(self, token_text: TokenText) -> None:
        self._token_text = token_text
        self._offset = 0

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """Return the shape for the next tokens."""
        shape: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = self._token_text(token.id)
            shape["tokens"].append(text)
            shape["token_logprobs"].append(token.logprob)
            shape["top_logprobs"].append({self._token_text(a.id): a.logprob for a in token.alternatives})
            shape["text_offset"].append(self._offset)
            self._offset += len(text)
        return shape


def chat_logprobs(tokens: Iterable[Token], token_text: TokenText) -> dict[str, Any]:
    """Return chat's shape."""
    content = [
        _entry(token_text(token.id), token.logprob)
        | {"top_logprobs": [_entry(token_text(a.id), a.logprob) for a in token.alternatives]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # Part of a character has no bytes of its own to show once it has become text.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
