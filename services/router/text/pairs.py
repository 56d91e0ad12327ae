"""Texts, and pairs of them, as a classifier reads them: the checkpoint's own tokenizer, joined and cut as it was trained."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from stagemesh.errors import CheckpointError
from stagemesh.v1.registry_pb2 import ModelSpec

from ..signature import IDS, signature_of
from .tokenizers import _folder, _json, _tokenizer

_log = logging.getLogger(__name__)
KEPT = 16
DEFAULT_TOKENS = 512
# Characters per token beyond which a text cannot fit, whatever the tokenizer.
_CHARACTERS_PER_TOKEN = 128
_UNLIMITED = 10**9


class PairText:
    """One model's tokenizer with one truncation setting; thread-safe. `config` is the checkpoint's `config.json`."""

    def __init__(
        self, spec: ModelSpec, tokenizer: Any, config: Mapping[str, Any], longest: int | None
    ) -> None:
        self.config = config
        limits = [spec.context_length, longest, getattr(tokenizer, "model_max_length", 0)]
        self.max_tokens = min((each for each in limits if each and each < _UNLIMITED), default=DEFAULT_TOKENS)
        self._tokenizer = tokenizer
        self._columns = [IDS]
        taken = {each.name for each in signature_of(spec).inputs}
        if "token_type_ids" in taken and "token_type_ids" in tokenizer.model_input_names:
            self._columns.append("token_type_ids")
        tokenizer.truncation_side = tokenizer.padding_side = "right"

    def encode(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None
    ) -> dict[str, list[list[int]]]:
        """Token rows by input name, special tokens included, of texts or of (text, second) pairs.

        What does not fit is cut from the longer of the two. Takes time in proportion to the text: call it in a thread.
        """
        longest = self.max_tokens * _CHARACTERS_PER_TOKEN
        encoded = self._tokenizer(
            [text[:longest] for text in texts],
            None if seconds is None else [text[:longest] for text in seconds],
            truncation=True,
            max_length=self.max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=len(self._columns) > 1,
            verbose=False,
        )
        return {name: [list(row) for row in encoded[name]] for name in self._columns}


class PairTexts:
    """`PairText` per (name, revision); the last 16 are kept, one load at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], PairText] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def get(self, spec: ModelSpec) -> PairText:
        """Raises `CheckpointError` when the tokenizer cannot be read."""
        key = (spec.name, spec.revision)
        async with self._one_at_a_time:
            if (kept := self._kept.get(key)) is None:
                kept = await asyncio.to_thread(_load, spec)
                self._kept[key] = kept
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        return kept


def _load(spec: ModelSpec) -> PairText:
    """Blocks on the disk."""
    folder = _folder(spec)
    config, sentence = _json(folder / "config.json"), _json(folder / "sentence_bert_config.json")
    try:
        tokenizer = _tokenizer(folder)
    except Exception as error:  # whatever a broken file makes the library raise
        _log.warning("tokenizer of %s cannot be loaded", spec.name, exc_info=True)
        raise CheckpointError(
            f"the tokenizer of model {spec.name!r} cannot be loaded ({type(error).__name__})", field="model"
        ) from error
    longest = sentence.get("max_seq_length")
    return PairText(spec, tokenizer, config, longest if isinstance(longest, int) else None)
