"""Write the model card: the figures of the run and samples that the saved model really produced."""

from __future__ import annotations

import argparse
import json
import platform
import textwrap
from pathlib import Path

import torch
from corpus import VALIDATION_MODULUS, Corpus, build_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
PROMPTS = ["def read_file(path):\n    ", "class Stack:\n", "The if statement is used for", "import os\n"]
QUESTIONS = [
    "Write a function. Return the sum of two numbers.",
    "What is the class Queue for?",
    'Tell me about this: The "if" statement',
]
SAMPLE_TOKENS = 100
SAMPLE_SEED = 0
CARD_WIDTH = 115  # characters

CARD = """\
---
language: en
license: psf-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [demo, code, llama]
---

# Demo model: a small Llama that writes Python

A model of {parameters} parameters that comes with the repository, so that a mesh can be started, cut into stages
and tested without downloading anything. It writes text that looks like Python code and like English documentation
of Python. **It is a demo, not a useful assistant.**

| | |
|---|---|
| Architecture | `LlamaForCausalLM`, {layers} layers, width {hidden}, MLP {intermediate}, RoPE, RMSNorm, tied embeddings |
| Attention | {heads} query heads, {kv_heads} key and value heads (grouped-query), head size {head_dim} |
| Vocabulary | {vocab} tokens, byte-level BPE, trained on the same text |
| Context | {context} tokens |
| Weights | {dtype}, {megabytes:.1f} MB |

`{bos}` begins a document, `{eos}` ends a document and every chat turn, `{pad}` pads.

## Training data

The standard library of CPython {python}: {characters:.1f} million characters in {documents:,} documents, \
{train_tokens:,} tokens.

* Sources, without tests and generated tables, cut at top-level functions and classes, duplicates removed.
* `pydoc_data.topics`, the part of the language reference behind `help()`, as whole topics and as passages.
* Questions and answers for the chat tokens, made by rule from docstrings, functions and reference topics.

Held out for validation: every module and topic whose hashed name falls into one of {modulus} classes
({validation_documents:,} documents, {validation_tokens:,} tokens).

**Licence.** The text is under the Python Software Foundation licence (version 2); a few modules carry further
notices of their authors. The weights are offered under the same licence.

## Training

AdamW (betas 0.9 and 0.95, weight decay 0.1 for matrices), cosine schedule with warm-up from a peak of 0.002,
packed sequences of {half_context} tokens and of {context} in the last part, 4,096 tokens per step, bfloat16 matrix
products on two CPU cores.

| | |
|---|---|
| Steps | {step:,} |
| Tokens seen | {tokens_seen:.1f} million |
| Time | {minutes:.0f} minutes |
| Train loss | {train_loss:.3f} nats per token (mean of the last steps) |
| Validation loss | {validation_loss:.3f} nats per token, {bits:.3f} bits per byte |
{note}
To train it again: `python train.py --checkpoint FOLDER`, then `python card.py --checkpoint FOLDER`. Another release
of CPython has another standard library and gives another model.

## Samples

Produced by `card.py` with this model: {tokens} tokens at most, seed {seed}; sampled means temperature 0.7, top-p 0.9.
They are neither selected nor edited, but for blanks at the ends of lines. `{eos}` at the end means that the model ended the text itself.

{samples}

## Intended use and limits

For demonstrations, tests and development of a serving system. Names, arguments and facts in its output are often
invented; code seldom runs as it is; greedy output likes to repeat itself; other languages and general knowledge are
missing. The model may reproduce passages of the standard library word for word. There is no safety training.
"""


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor], sample: bool
) -> str:
    """The generated part alone, with the end token if the model ended the text."""
    torch.manual_seed(SAMPLE_SEED)
    settings = {"temperature": 0.7, "top_p": 0.9} if sample else {"temperature": None, "top_p": None}
    output = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, do_sample=sample, **settings)
    return tokenizer.decode(output[0][inputs["input_ids"].shape[1] :])


def samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Markdown with greedy and sampled completions of the prompts and sampled answers to the questions."""
    parts = []
    for prompt in PROMPTS:
        inputs = dict(tokenizer(prompt, return_tensors="pt"))
        for name, sample in (("greedy", False), ("sampled", True)):
            text = prompt + continuation(model, tokenizer, inputs, sample)
            parts.append(f"Prompt `{json.dumps(prompt)}`, {name}:\n\n````text\n{text}\n````")
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        inputs = dict(
            tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        )
        text = continuation(model, tokenizer, inputs, sample=True)
        parts.append(f"Chat question `{json.dumps(question)}`, sampled:\n\n````text\n{text}\n````")
    return "\n\n".join("\n".join(line.rstrip() for line in part.splitlines()) for part in parts)


def card(folder: Path, progress: dict[str, float], corpus: Corpus, note: str) -> str:
    """The text of the card for the model in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    unique = {(document.question, document.text) for document in corpus.train}
    return CARD.format(
        parameters=f"{model.num_parameters() / 1e6:.1f} million",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        half_context=config.max_position_embeddings // 2,
        dtype=json.loads((folder / "config.json").read_text())["dtype"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
        pad=tokenizer.pad_token,
        python=platform.python_version(),
        characters=sum(len(text) for _, text in unique) / 1e6,
        documents=len(unique),
        validation_documents=len(corpus.validation),
        modulus=VALIDATION_MODULUS,
        train_tokens=int(progress["train_tokens"]),
        validation_tokens=int(progress["validation_tokens"]),
        step=int(progress["step"]),
        tokens_seen=progress["tokens_seen"] / 1e6,
        minutes=progress["seconds"] / 60,
        train_loss=progress["train_loss"],
        validation_loss=progress["validation_loss"],
        bits=progress["validation_bits_per_byte"],
        note=f"\n{textwrap.fill(note, CARD_WIDTH)}\n" if note else "",
        tokens=SAMPLE_TOKENS,
        seed=SAMPLE_SEED,
        samples=samples(model, tokenizer),
    )


def main() -> None:
    """Read the figures of a run and write the card beside the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model", help="folder of the model")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint folder of its training run"
    )
    parser.add_argument("--note", default="", help="a sentence about the run for the card")
    args = parser.parse_args()
    progress = json.loads((args.checkpoint / "progress.json").read_text())
    (args.model / "README.md").write_text(card(args.model, progress, build_corpus(), args.note))


if __name__ == "__main__":
    main()
