"""A plain new process that imports and loads one partition, as a cold start does; prints when that is done.

python -m bench.coldstart_child FOLDER FIRST END DATA

DATA is a node's data folder: what was tried out on this machine before is known, as it is to every node.
"""

import sys
from pathlib import Path

import torch

from services.stage import node
from services.stage.partition.load import load_partition
from services.stage.partition.trials import TRIALS
from stagemesh import checkpoint as checkpoints


def main(folder: str, first: int, end: int, data: str) -> None:
    """Load it with one thread, as every contender does."""
    assert node.Node is not None  # what a stage process imports
    torch.set_num_threads(1)
    TRIALS.use(Path(data))
    found = checkpoints.inspect(Path(folder))
    with torch.inference_mode(False):
        load_partition(Path(folder), found, task="generate", first=first, end=end)
    print("loaded", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
