"""What a process does before it may be forked: import everything, and have ready what every start needs again.

Nothing here may start a thread: a fork takes along only the thread that calls it, and locks that others hold stay locked.
"""

import ctypes
import gc
import threading
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig
from transformers.conversion_mapping import get_model_conversion_mapping

from stagemesh.errors import InternalError

from .. import __main__ as service
from ..partition.causal import build_causal
from ..partition.kernels import load_kernels

__all__ = ["prepare", "threads"]

_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 16,
}


def prepare() -> None:
    """Do it. Takes seconds.

    Raises:
        InternalError: something started a thread all the same, so that this process must not be forked.
    """
    assert service.start is not None
    # A team of threads would not exist in a child, which would wait for it.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    skeleton = build_causal(LlamaConfig(**_SMALL), 0, 1, torch.float32, True)
    get_model_conversion_mapping(skeleton.model)  # compiles a thousand patterns, once
    load_kernels(torch.float32)
    ctypes.CDLL(None)
    del skeleton
    gc.collect()
    # The collector would write to every object, and so copy every page in every child.
    gc.freeze()
    if (count := threads()) > 1:
        names = ", ".join(each.name for each in threading.enumerate())
        raise InternalError(f"{count} threads run before the fork ({names})")


def threads() -> int:
    """Threads of this process, Python's and others."""
    return len(list(Path("/proc/self/task").iterdir()))
