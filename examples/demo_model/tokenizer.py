"""Byte-level BPE tokenizer of the demo model, trained on the corpus and saved in Hugging Face format."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from corpus import Document
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT]  # ids 0 to 5

# A newline and the indentation after it are one unit of their own. With the usual GPT-2 pattern the last blank of
# an indentation belongs to the next word, so a prompt that ends in an indentation ("def f():\n    ") would end in
# a token that training never saw in that place.
SPLIT_PATTERN = r"\s*\n[ \t]*| ?_*\p{L}+| ?_+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"

# Every turn ends in the end token, so a server needs one stop token only, in chat and in plain completion.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'assistant'] %}{{ '<|' + message['role'] + '|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(documents: Iterable[Document], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer with ``vocab_size`` entries, special tokens included; ``context`` is in tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def render(document: Document) -> str:
    """A document as training sees it: the beginning token, turns if it is a chat, and the end token."""
    if document.question is None:
        return f"{BOS}{document.text}{EOS}"
    system = f"{SYSTEM}{document.system}{EOS}" if document.system else ""
    return f"{BOS}{system}{USER}{document.question}{EOS}{ASSISTANT}{document.text}{EOS}"


def indentation_splits(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, int]]:
    """For each token that is newlines and an indentation, the two tokens that say the same."""
    splits = {}
    vocabulary = tokenizer.get_vocab()
    for token, number in vocabulary.items():
        match = re.fullmatch("(Ċ+)(Ġ+)", token)  # the byte-level alphabet writes newline as Ċ and blank as Ġ
        if match and match.group(1) in vocabulary and match.group(2) in vocabulary:
            splits[number] = (vocabulary[match.group(1)], vocabulary[match.group(2)])
    return splits


def encode(
    document: Document,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[int, tuple[int, int]],
    split_share: float,
    rng: random.Random,
) -> tuple[list[int], list[int]]:
    r"""Token ids of a document and, for each, the id to predict at its place or -100 for none.

    Questions are read but not predicted. ``split_share`` of the indentations are cut after the newline: a prompt
    may end there ("class Stack:\n"), and the model has to know how to go on.
    """
    ids: list[int] = []
    for number in tokenizer(render(document), add_special_tokens=False, verbose=False)["input_ids"]:
        if number in splits and rng.random() < split_share:
            ids.extend(splits[number])
        else:
            ids.append(number)
    answer = 1 + (ids.index(SPECIAL_TOKENS.index(ASSISTANT)) if document.question is not None else 0)
    return ids, ids[:1] + [-100] * (answer - 1) + ids[answer:]
