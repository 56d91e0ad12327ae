"""A plain new process that imports and loads one partition, as a cold start does; prints when that is done.

python -m bench.coldstart_child FOLDER FIRST END
"""

import sys
from pathlib import Path

import torch

from services.stage import node
from services.stage.partition.load import load_partition
from stagemesh import checkpoint as checkpoints


def main(folder: str, first: int, end: int) -> None:
    """Load it with one thread, as every contender does."""
    assert node.Node is not None  # what a stage process imports
    torch.set_num_threads(1)
    found = checkpoints.inspect(Path(folder))
    with torch.inference_mode(False):
        load_partition(Path(folder), found, task="generate", first=first, end=end)
    print("loaded", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
