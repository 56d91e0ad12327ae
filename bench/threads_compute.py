"""Decode passes of the second half of a reference checkpoint, and the process that runs them beside a gRPC process."""

import argparse
import time

import torch

from bench.checkpoints import SHAPES, checkpoint
from bench.threads_pipe import ROWS, serve
from services.stage.partition.causal import CausalPartition
from services.stage.partition.interface import Activations, Batch
from services.stage.partition.kv import KVPool
from services.stage.partition.load import load_partition
from services.stage.partition.ragged import Segment
from services.stage.tensors import to_view
from stagemesh.checkpoint import inspect
from stagemesh.tensor import TensorView

# Positions of each session's decode steps; after the last comes the first again.
BEGIN, END = 64, 128


class Passes:
    """`ROWS` sessions that decode together on one thread: `run` is one step of each."""

    def __init__(self, model: str, dtype: str, fast: bool) -> None:
        torch.set_num_threads(1)
        folder, layers = checkpoint(model), SHAPES[model].layers
        part = load_partition(
            folder, inspect(folder), task="generate", first=layers // 2, end=layers, dtype=dtype, fast=fast
        )
        assert isinstance(part, CausalPartition)
        pool = KVPool(2**28, part.kv_layout)
        self._part = part
        self._kvs = [pool.reserve(END) for _ in range(ROWS)]
        self._at = BEGIN
        prompt = [Segment(row * BEGIN, BEGIN, 0, kv) for row, kv in enumerate(self._kvs)]
        begin = torch.randn(ROWS * BEGIN, part.hidden_size).to(part.dtype)
        part.forward(Batch(prompt, given=Activations(begin)))

    def run(self, data: memoryview) -> tuple[TensorView, float]:
        """Hidden states `[ROWS, hidden]` in and out, and the seconds that it took."""
        started = time.perf_counter()
        hidden = torch.frombuffer(data, dtype=self._part.dtype).reshape(ROWS, -1)
        segments = [Segment(row, 1, self._at, kv) for row, kv in enumerate(self._kvs)]
        out = self._part.forward(Batch(segments, given=Activations(hidden))).hidden
        self._at = BEGIN if self._at == END - 1 else self._at + 1
        return to_view(out), time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("work", "done", "memory"):
        parser.add_argument(name, type=int)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    passes = Passes(args.model, args.dtype, not args.plain)
    serve(passes.run, args.work, args.done, args.memory)
