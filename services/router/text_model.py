"""The text side of one model: prompts to tokens, tokens to text."""

import copy
from collections.abc import Sequence
from typing import Any

from stagemesh.errors import CheckpointError, FailedPrecondition, InvalidArgument, OutOfRange
from stagemesh.v1.registry_pb2 import ModelSpec

from .text_detokenize import Detokenizer
from .text_limits import run_limited

# A rendered conversation may be this much longer than what was sent, in characters.
_TEMPLATE_OVERHEAD = 256 * 2**10
_TEMPLATE_SECONDS = 2.0
_MAX_MESSAGES = 4096
# Characters per token beyond which a text cannot fit the context, whatever the tokenizer.
_CHARACTERS_PER_TOKEN = 128


class ModelText:
    """Tokenizer, chat template and end tokens of a model; thread-safe.

    `tokenizer` is a transformers tokenizer, or None for a checkpoint that has none: such a model takes and
    gives token ids only. Encoding takes time in proportion to the text: call it from a thread for long texts.
    """

    def __init__(
        self, spec: ModelSpec, tokenizer: Any, eos_ids: Sequence[int], max_embed_tokens: int | None = None
    ) -> None:
        self.model = spec.name
        self.eos_ids = list(eos_ids)
        limits = [limit for limit in (max_embed_tokens, spec.context_length) if limit]
        self.max_embed_tokens = min(limits, default=512)
        self._context = spec.context_length
        self._tokenizer = tokenizer
        # Truncation is a setting of the tokenizer object: each of the two is used with one setting only.
        self._batch_tokenizer: Any = None
        self._template_broken = False
        self._special: frozenset[int] = frozenset()
        if tokenizer is not None:
            tokenizer.truncation_side = tokenizer.padding_side = "right"
            added = tokenizer.added_tokens_decoder
            self._special = frozenset(token for token, content in added.items() if content.special)
            self._encode(["a"], field="prompt")
            if spec.task == "embed" or max_embed_tokens:
                self._batch_tokenizer = copy.deepcopy(tokenizer)
                self.encode_batch(["a"])

    def __repr__(self) -> str:
        return f"ModelText({self.model!r}, eos_ids={self.eos_ids}, tokenizer={self._tokenizer is not None})"

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be used at all, or token ids only."""
        return self._tokenizer is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return self._tokenizer is not None and bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` with the special tokens that the checkpoint adds.

        Raises `OutOfRange` for a text far beyond the context, `FailedPrecondition` without a tokenizer.
        """
        return self._encode([text], field="prompt")[0]

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation, `[{"role": ..., "content": ...}, ...]`, ready for the answer.

        Blocks up to two seconds: call it from a thread. Raises `InvalidArgument` (field "messages") without a
        chat template or when the template refuses the conversation, and `OutOfRange` when it is too long.
        """
        tokenizer = self._need_tokenizer("messages")
        if not self.has_chat_template:
            raise InvalidArgument(
                f"messages: model {self.model!r} has no chat template; use completions with a prompt",
                field="messages",
            )
        if not messages:
            raise InvalidArgument("messages: must not be empty", field="messages")
        size = sum(len(message.get("content") or "") for message in messages)
        if len(messages) > _MAX_MESSAGES or size > self._longest():
            raise OutOfRange("messages: longer than the model's context", field="messages")
        text = self._render(tokenizer, messages, size + _TEMPLATE_OVERHEAD)
        return self._encode([text], field="messages", special=False)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, truncated to `max_embed_tokens`, special tokens included.

        Raises `FailedPrecondition` for a model that does not embed.
        """
        return self._encode(texts, field="input", truncate=self.max_embed_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of all `ids` without special tokens."""
        return self._decode(list(ids)) if self._tokenizer is not None else ""

    def token_text(self, token: int) -> str:
        """Return the text of one token as log probabilities show it, special tokens by name."""
        if self._tokenizer is None:
            return f"token_id:{token}"
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental decoder for one answer; without a tokenizer its text is always empty."""
        return Detokenizer(self.decode, self._special)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _longest(self) -> int:
        return max(64 * 2**10, self._context * _CHARACTERS_PER_TOKEN)

    def _need_tokenizer(self, field: str) -> Any:
        if self._tokenizer is None:
            raise FailedPrecondition(
                f"{field}: the checkpoint of model {self.model!r} has no tokenizer; send token ids",
                field=field,
            )
        return self._tokenizer

    def _encode(
        self, texts: Sequence[str], *, field: str, special: bool = True, truncate: int | None = None
    ) -> list[list[int]]:
        tokenizer = self._need_tokenizer(field)
        if truncate is not None:
            if self._batch_tokenizer is None:
                raise FailedPrecondition(f"model: {self.model!r} does not embed", field="model")
            tokenizer = self._batch_tokenizer
            longest = self._longest()
            texts = [text[:longest] for text in texts]
        elif any(len(text) > self._longest() for text in texts):
            raise OutOfRange(
                f"{field}: longer than the model's context of {self._context} tokens", field=field
            )
        if not texts:
            return []
        encoded = tokenizer(
            list(texts),
            add_special_tokens=special,
            padding=False,
            truncation=truncate is not None,
            max_length=truncate,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def _render(self, tokenizer: Any, messages: Sequence[dict[str, Any]], longest: int) -> str:
        too_slow = CheckpointError(
            f"messages: the chat template of model {self.model!r} takes too long", field="messages"
        )
        if self._template_broken:
            raise too_slow

        def render() -> str:
            rendered: str = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
            return rendered

        try:
            text = run_limited(render, _TEMPLATE_SECONDS, too_slow)
        except CheckpointError:
            self._template_broken = True
            raise
        except Exception as error:  # whatever a template's author makes jinja raise
            raise InvalidArgument(
                f"messages: the model's chat template refuses them: {str(error)[:200]}", field="messages"
            ) from error
        if len(text) > longest:
            raise OutOfRange("messages: the rendered conversation is too long", field="messages")
        return text
