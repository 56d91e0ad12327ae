"""The gloo contender of the transport benchmark: `torch.distributed` send and recv between two processes.

The receiving end is started as `python -m bench.gloo_peer --port-file FILE --store FILE`.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from bench.children import announce_port
from stagemesh.malloc import keep_large_blocks

_SENDER, _RECEIVER = 0, 1


def _join(store: str, rank: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


class Sender:
    """The sending end, in the benchmark's process."""

    def send(self, array: np.ndarray, count: int) -> float:
        """Seconds to send `array` so many times, until the receiver said that it has the last one."""
        tensor = torch.from_numpy(array.reshape(-1))
        done = torch.zeros(1, dtype=torch.int64)
        started = time.perf_counter()
        dist.send(torch.tensor([tensor.numel(), count]), _RECEIVER)
        for _ in range(count):
            dist.send(tensor, _RECEIVER)
        dist.recv(done, _RECEIVER)
        return time.perf_counter() - started


@contextlib.contextmanager
def joined(store: str) -> Iterator[Sender]:
    """A sender in a group with the receiver, which is told to end when the block does."""
    _join(store, _SENDER)
    try:
        yield Sender()
        dist.send(torch.tensor([0, 0]), _RECEIVER)
    finally:
        dist.destroy_process_group()


def main(port_file: str, store: str) -> None:
    """Receive into one reused tensor until told to end."""
    keep_large_blocks()
    announce_port(port_file, 0)  # the file store brings both together, no port does
    _join(store, _RECEIVER)
    plan = torch.zeros(2, dtype=torch.int64)
    buffer = torch.zeros(0)
    while True:
        dist.recv(plan, _SENDER)
        elements, count = plan.tolist()
        if not elements:
            break
        if buffer.numel() != elements:
            buffer = torch.zeros(elements)
        for _ in range(count):
            dist.recv(buffer, _SENDER)
        dist.send(plan[:1], _SENDER)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--store", required=True)
    arguments = parser.parse_args()
    main(arguments.port_file, arguments.store)
