"""Train the demo model: a small Llama that writes Python code and a little English about Python.

Nothing is downloaded: the text is the standard library of the running CPython (see ``corpus.py``). A run of the
default length takes about an hour on two CPU cores. The checkpoint folder holds float32 weights and optimiser
state for ``--resume``; the output folder holds the bfloat16 model in Hugging Face format.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Document, build_corpus
from safetensors.torch import load_file, save_file
from tokenizer import encode, indentation_splits, render, train_tokenizer
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).resolve().parent
WARMUP_STEPS = 100
FINAL_LR_SHARE = 0.02  # of the peak, at the last step
SPLIT_SHARE = 0.1  # of the indentations that training sees as newline and blanks apart
LONG_FROM = 0.85  # share of the run after which sequences are twice as long and batches half as large


@dataclass
class Progress:
    """What a resumed run and the model card need to know; losses are in nats per token."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    train_loss: float = float("nan")
    validation_loss: float = float("nan")
    validation_bits_per_byte: float = float("nan")
    train_tokens: int = 0
    validation_tokens: int = 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=HERE / "model", help="folder of the finished model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder for the state of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the checkpoint folder")
    parser.add_argument("--steps", type=int, default=4700, help="optimiser steps of the whole run")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument(
        "--seq-len", type=int, default=512, help="tokens per sequence; the context is twice that"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="for matrices; vectors have none")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens in the vocabulary")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--intermediate", type=int, default=640, help="width inside the MLP")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers")
    parser.add_argument("--heads", type=int, default=8, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=4, help="key and value heads")
    parser.add_argument("--save-every", type=int, default=300, help="steps between snapshots")
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    parser.add_argument(
        "--seed", type=int, default=1234, help="for weights, order of documents and of batches"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile"
    )
    return parser.parse_args()


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model whose output projections start small, which steadies the high learning rate."""
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=2 * args.seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.div_(math.sqrt(2 * args.layers))
    return model


def pack(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, seed: int, split_share: float = 0.0
) -> torch.Tensor:
    """All documents in random order as one stream, shape (2, tokens): ids, and the ids to predict (see encode)."""
    rng = random.Random(seed)
    order = list(documents)
    rng.shuffle(order)
    splits = indentation_splits(tokenizer)
    pairs = [encode(document, tokenizer, splits, split_share, rng) for document in order]
    return torch.from_numpy(np.concatenate([np.asarray(pair, dtype=np.int64) for pair in pairs], axis=1))


def batch_at(stream: torch.Tensor, step: int, batch: int, length: int, seed: int) -> torch.Tensor:
    """The batch of one step, shape (batch, 2, length + 1), as a function of step and seed alone.

    Each pass over the stream cuts it at other places and takes the windows in another order, and a resumed run
    needs no stored position.
    """
    windows = (stream.shape[1] - 2 * length) // length
    rows = []
    for index in range(step * batch, (step + 1) * batch):
        epoch, position = divmod(index, windows)
        rng = np.random.default_rng([seed, length, epoch])
        start = int(rng.integers(length)) + int(rng.permutation(windows)[position]) * length
        rows.append(stream[:, start : start + length + 1])
    return torch.stack(rows)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to a small share of the peak."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = min(1.0, (step - WARMUP_STEPS) / max(1, total - WARMUP_STEPS))
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def loss_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token; the matrix products run in bfloat16, about twice as fast on a CPU."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, 0, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def validate(model: torch.nn.Module, stream: torch.Tensor, batch: int, length: int) -> float:
    """Mean loss over the whole held-out stream but for the tail that fills no batch."""
    span = batch * length
    losses = []
    for start in range(0, stream.shape[1] - span - 1, span):
        rows = stream[:, start : start + span + 1].unfold(1, length + 1, length).transpose(0, 1)
        losses.append(loss_of(model, rows).item())
    return float(np.mean(losses))


def save_snapshot(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the bfloat16 model, each file renamed into place, so that a reader never sees half of one."""
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    copy.generation_config = GenerationConfig(**special, do_sample=True, temperature=0.7, top_p=0.9)
    copy.save_pretrained(partial)
    tokenizer.save_pretrained(partial, save_jinja_files=False)  # the template goes into tokenizer_config.json
    settings = json.loads((partial / "tokenizer_config.json").read_text())
    for key in ("is_local", "local_files_only"):  # how this run loaded it, nothing about the tokenizer
        settings.pop(key, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older releases know as well
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    partial.rmdir()


def save_state(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write what ``--resume`` needs: float32 weights, optimiser moments and the counters."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.named_parameters()), folder / "weights.safetensors")
    moments = optimizer.state_dict()["state"]
    flat = {f"{index}.{key}": value for index, entry in moments.items() for key, value in entry.items()}
    save_file(flat, folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n")


def load_state(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a saved state back and return its counters."""
    weights = load_file(folder / "weights.safetensors")
    model.load_state_dict(weights, strict=False)  # the tied head is not stored
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads((folder / "progress.json").read_text()))


def main() -> None:
    """Build corpus, tokenizer and model, train, and save along the way."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    corpus = build_corpus()
    if args.resume:
        tokenizer = AutoTokenizer.from_pretrained(args.checkpoint / "tokenizer")
    else:
        tokenizer = train_tokenizer(corpus.train, args.vocab, 2 * args.seq_len)
        tokenizer.save_pretrained(args.checkpoint / "tokenizer")
    train_stream = pack(corpus.train, tokenizer, args.seed, SPLIT_SHARE)
    held_out = pack(corpus.validation, tokenizer, args.seed)
    bytes_per_token = sum(len(render(d).encode()) for d in corpus.validation) / held_out.shape[1]
    model = build_model(args, tokenizer)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    progress = load_state(args.checkpoint, model, optimizer) if args.resume else Progress()
    progress.train_tokens, progress.validation_tokens = train_stream.shape[1], held_out.shape[1]
    print(f"{model.num_parameters():,} parameters, {train_stream.shape[1]:,} training tokens, "
          f"{held_out.shape[1]:,} validation tokens, {bytes_per_token:.2f} bytes per token", flush=True)  # fmt: skip
    fast = torch.compile(model, dynamic=False) if args.compile else model
    losses: list[float] = []
    mark, mark_tokens = time.monotonic(), progress.tokens_seen
    for step in range(progress.step, args.steps):
        long = step >= LONG_FROM * args.steps
        batch, length = (max(1, args.batch // 2), 2 * args.seq_len) if long else (args.batch, args.seq_len)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(fast, batch_at(train_stream, step, batch, length, args.seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        progress.step, progress.tokens_seen = step + 1, progress.tokens_seen + batch * length
        if progress.step % args.log_every == 0:
            now = time.monotonic()
            speed = (progress.tokens_seen - mark_tokens) / (now - mark)
            progress.seconds += now - mark
            progress.train_loss, losses = float(np.mean(losses)), []
            mark, mark_tokens = now, progress.tokens_seen
            print(f"step {progress.step} train {progress.train_loss:.4f} tokens/s {speed:.0f}", flush=True)
        if progress.step % args.save_every == 0 or progress.step == args.steps:
            progress.validation_loss = validate(model, held_out, args.batch, args.seq_len)
            progress.validation_bits_per_byte = progress.validation_loss / math.log(2) / bytes_per_token
            print(f"step {progress.step} validation {progress.validation_loss:.4f} nats per token, "
                  f"{progress.validation_bits_per_byte:.3f} bits per byte", flush=True)  # fmt: skip
            save_state(args.checkpoint, model, optimizer, progress)
            save_snapshot(model, tokenizer, args.output)
            progress.seconds += time.monotonic() - mark
            mark = time.monotonic()


if __name__ == "__main__":
    main()
