"""Half of a reference checkpoint, run in one of several ways on one thread: a contender of the `compiled` benchmark.

Started as `python -m bench.compiled_child --port-file FILE --way WAY --model NAME --dtype F32`. Every way does the same
decode pass: `rows` sessions, one token each, at positions `BEGIN` to `END - 1` over and over, hidden states in and out.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import psutil
import torch
from torch._inductor import config as inductor_config
from transformers import DynamicCache, LlamaModel, StaticCache

from bench.agreement import agreement
from bench.checkpoints import SHAPES, checkpoint
from bench.children import announce_port
from bench.compiled import BEGIN, EAGER, END, INDUCTOR, PACKED, SERVICE, STAGE
from services.stage.partition.causal import CausalPartition
from services.stage.partition.interface import Activations, Batch, Partition
from services.stage.partition.kv import KVPool
from services.stage.partition.load import load_partition
from services.stage.partition.packed import pack_linears
from services.stage.partition.ragged import Segment
from stagemesh.checkpoint import inspect
from stagemesh.grpc_server import GrpcServer, serve_until_signal

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}

Step = Callable[[], torch.Tensor]


def half(model: str, dtype: str) -> LlamaModel:
    """The second half of the layers and the norm, as transformers loads and runs them."""
    layers = SHAPES[model].layers
    whole = LlamaModel.from_pretrained(checkpoint(model), dtype=_TORCH[dtype]).eval().requires_grad_(False)
    whole.layers = whole.layers[layers // 2 :]
    whole.embed_tokens = torch.nn.Identity()
    whole.config.num_hidden_layers = len(whole.layers)
    for index, layer in enumerate(whole.layers):
        layer.self_attn.layer_idx = index
    return whole


def growing(model: LlamaModel, rows: int) -> Step:
    """Steps with the cache that transformers' `generate` uses, cut back when it is full."""
    cache = DynamicCache(config=model.config)
    model(inputs_embeds=_hidden(model, rows, BEGIN), past_key_values=cache, use_cache=True)
    hidden = _hidden(model, rows, 1)

    def step() -> torch.Tensor:
        if cache.get_seq_length() >= END:
            cache.crop(BEGIN - END)
        return model(inputs_embeds=hidden, past_key_values=cache, use_cache=True).last_hidden_state

    return step


def static(model: LlamaModel, call: Any, rows: int) -> Step:
    """Steps with keys and values of a fixed size, as a compiler wants them."""
    cache = StaticCache(config=model.config, max_cache_len=END)
    model(inputs_embeds=_hidden(model, rows, BEGIN), past_key_values=cache, use_cache=True)
    hidden, at = _hidden(model, rows, 1), BEGIN

    def step() -> torch.Tensor:
        nonlocal at
        if at == END:
            for layer in cache.layers:
                layer.cumulative_length.fill_(BEGIN)
            at = BEGIN
        at += 1
        return call(inputs_embeds=hidden, past_key_values=cache, use_cache=True).last_hidden_state

    return step


def of_stage(part: Partition, rows: int) -> Step:
    """Steps as a stage runs them."""
    assert isinstance(part, CausalPartition)
    pool = KVPool(2**28, part.kv_layout)
    kvs = [pool.reserve(END) for _ in range(rows)]
    prompt = [Segment(row * BEGIN, BEGIN, 0, kv) for row, kv in enumerate(kvs)]
    part.forward(Batch(prompt, given=Activations(torch.randn(rows * BEGIN, part.hidden_size).to(part.dtype))))
    hidden, at = torch.randn(rows, part.hidden_size).to(part.dtype), BEGIN

    def step() -> torch.Tensor:
        nonlocal at
        segments = [Segment(row, 1, at, kv) for row, kv in enumerate(kvs)]
        out = part.forward(Batch(segments, given=Activations(hidden))).hidden
        at = BEGIN if at == END - 1 else at + 1
        return out

    return step


def _hidden(model: LlamaModel, rows: int, tokens: int) -> torch.Tensor:
    return torch.randn(rows, tokens, model.config.hidden_size).to(model.dtype)


class Contender:
    """One way to run the passes; `prepare` a number of rows before `run`."""

    def __init__(self, way: str, model: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.about: dict[str, Any] = {"way": way, "fused": False}
        started = time.perf_counter()
        if way == STAGE:
            folder, layers = checkpoint(model), SHAPES[model].layers
            part = load_partition(
                folder, inspect(folder), task="generate", first=layers // 2, end=layers, dtype=dtype
            )
            self.about["fused"] = bool(getattr(part, "fused", False))
            self._make: Callable[[int], Step] = partial(of_stage, part)
        else:
            loaded = half(model, dtype)
            if way == PACKED:
                self.about["packed"] = pack_linears(loaded)
            self._make = partial(growing, loaded)
            if way in INDUCTOR:
                # Settings of the process: as options of `compile` they come too late for weights to become constants.
                for name, value in {"freezing": True, **INDUCTOR[way]}.items():
                    setattr(inductor_config, name, value)
                compiled = torch.compile(loaded, backend="inductor", dynamic=False)
                self._make = partial(static, loaded, compiled)
        self.about["load_s"] = time.perf_counter() - started
        self._steps: dict[int, Step] = {}

    def prepare(self, rows: int) -> dict[str, Any]:
        """The first passes of `rows` sessions, compilation included: seconds, and the process's memory after."""
        started = time.perf_counter()
        with torch.no_grad():
            self._steps[rows] = self._make(rows)
            for _ in range(3):
                self._steps[rows]()
        seconds = time.perf_counter() - started
        return {**self.about, "prepare_s": seconds, "rss_bytes": psutil.Process().memory_info().rss}

    def run(self, rows: int, passes: int) -> list[float]:
        """Milliseconds of each pass."""
        step, taken = self._steps[rows], []
        with torch.no_grad():
            for _ in range(passes):
                started = time.perf_counter()
                step()
                taken.append((time.perf_counter() - started) * 1000)
        return taken


async def main(args: argparse.Namespace) -> None:
    """Serve until the benchmark ends this process."""
    contender = Contender(args.way, args.model, args.dtype)

    async def prepare(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return json.dumps(await asyncio.to_thread(contender.prepare, **json.loads(request))).encode()

    async def run(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return json.dumps(await asyncio.to_thread(contender.run, **json.loads(request))).encode()

    async def agree(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return json.dumps(
            await asyncio.to_thread(agreement, args.model, args.dtype, **json.loads(request))
        ).encode()

    server = GrpcServer("127.0.0.1", 0)
    unary = grpc.unary_unary_rpc_method_handler
    methods = {
        "Prepare": unary(prepare, None, None),
        "Run": unary(run, None, None),
        "Agree": unary(agree, None, None),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    announce_port(args.port_file, await server.start([SERVICE]))
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--way", choices=[EAGER, PACKED, STAGE, *INDUCTOR], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=[*_TORCH], required=True)
    asyncio.run(main(parser.parse_args()))
