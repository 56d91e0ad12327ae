"""The text side of one model: prompts to tokens, tokens to text."""

import asyncio
import copy
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stagemesh.errors import FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted
from stagemesh.v1.registry_pb2 import ModelSpec

from .detokenize import Detokenizer
from .templates import Templates, TemplateTooSlow

# A rendered conversation may be this much longer than what was sent, in characters.
_TEMPLATE_OVERHEAD = 256 * 2**10
# A template that took too long so often in a row is put aside for a while: it may be the conversations' fault.
_MAX_STRIKES = 3
_ASIDE_S = 30.0
# How long a conversation waits for others of its model to be rendered.
_TURN_S = 10.0
_THREADS = 4
_MAX_MESSAGES = 4096
# Characters per token beyond which a text cannot fit the context, whatever the tokenizer.
_CHARACTERS_PER_TOKEN = 128


class ModelText:
    """Tokenizer, chat template and end tokens of a model; thread-safe.

    `tokenizer` is a transformers tokenizer, or None for a checkpoint that has none: such a model takes and
    gives token ids only. Encoding takes time in proportion to the text: call it from a thread for long texts.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Any,
        eos_ids: Sequence[int],
        max_embed_tokens: int | None = None,
        templates: Templates | None = None,
    ) -> None:
        self.model = spec.name
        self.eos_ids = list(eos_ids)
        limits = [limit for limit in (max_embed_tokens, spec.context_length) if limit]
        self.max_embed_tokens = min(limits, default=512)
        self._context = spec.context_length
        self._tokenizer = tokenizer
        # Truncation is a setting of the tokenizer object: each of the two is used with one setting only.
        self._batch_tokenizer: Any = None
        # What renders chat templates; of its processes this model takes one at a time.
        self._templates = Templates() if templates is None else templates
        self._template: str | None = None
        self._turn = threading.Lock()
        self._strikes = 0
        self._aside_until = 0.0
        # Of its own: conversations that wait for a slow template must not take the threads of other models.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="chat")
        self._special: frozenset[int] = frozenset()
        if tokenizer is not None:
            tokenizer.truncation_side = tokenizer.padding_side = "right"
            added = tokenizer.added_tokens_decoder
            self._special = frozenset(token for token, content in added.items() if content.special)
            self._template = _chat_template(tokenizer)
            self._named = {
                name: [str(each) for each in token] if isinstance(token, list) else str(token)
                for name, token in tokenizer.special_tokens_map.items()
            }
            # Rows of the model's vocabulary beyond the tokenizer's, and holes in it, are no text.
            self._known = frozenset(tokenizer.get_vocab().values())
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
        return bool(self._template)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` with the special tokens that the checkpoint adds.

        Raises `OutOfRange` for a text far beyond the context, `FailedPrecondition` without a tokenizer.
        """
        return self._encode([text], field="prompt")[0]

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation, `[{"role": ..., "content": ...}, ...]`, ready for the answer.

        Special tokens are those that the template writes; none is added. Blocks: see `encode_conversation`. Raises
        `InvalidArgument` (field "messages") without a chat template or when the template refuses the conversation,
        `OutOfRange` when it is too long, `CheckpointError` for a template that cannot be used or takes too long,
        and `ResourceExhausted` when others of this model take all the time.
        """
        self._need_tokenizer("messages")
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
        text = self._render(messages, size + _TEMPLATE_OVERHEAD)
        return self._encode([text], field="messages", special=False)[0]

    async def encode_conversation(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """`encode_chat` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.encode_chat, messages)

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
        if token not in self._known:
            return ""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental decoder for one answer; without a tokenizer its text is always empty."""
        return Detokenizer(self.decode, self._special)

    def _decode(self, ids: list[int]) -> str:
        known = [token for token in ids if token in self._known]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True)
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

    def _render(self, messages: Sequence[dict[str, Any]], longest: int) -> str:
        """The conversation as the template writes it; raises what `encode_chat` says."""
        assert self._template is not None
        variables = {
            **self._named,
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        if not self._turn.acquire(timeout=_TURN_S):
            raise ResourceExhausted(
                "messages: too many conversations wait for the model's chat template",
                field="messages",
                retry_after_s=_TURN_S,
            )
        try:
            if time.monotonic() < self._aside_until:
                raise TemplateTooSlow("messages: the model's chat template takes too long", field="messages")
            text = self._templates.render(self._template, variables, longest)
        except TemplateTooSlow:
            self._strikes += 1
            if self._strikes >= _MAX_STRIKES and time.monotonic() >= self._aside_until:
                self._aside_until = time.monotonic() + _ASIDE_S
            raise
        finally:
            self._turn.release()
        self._strikes = 0
        return text


def _chat_template(tokenizer: Any) -> str | None:
    """The template for conversations without tools: the only one, or of several the one named so."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
