"""What was tried out on this machine before: a faster form of a layer that was right and sooner needs no second trial.

A trial costs about a tenth of loading a partition. Its outcome depends on the machine, the layer's shape, the dtype and
the number of threads, and on the code that ran: all of that is its key. A process remembers it, and a small file in the
node's data folder does for those that start later.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from .kernels import kernels_file

log = logging.getLogger(__name__)

_FILE = "trials.json"
_MOST = 1024


class Trials:
    """What was found to pay, by key. Until it is given a folder it remembers nothing.

    Only what pays is remembered: a trial on a busy machine may find against a form that is better.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._path: Path | None = None
        self._code = ""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Trials {len(self._known)} known>"

    def use(self, folder: Path) -> None:
        """Know what the file in `folder` says, and keep there what is found from now on."""
        code, known = code_digest(), _read(folder / _FILE)
        with self._lock:
            self._code, self._path, self._known = code, folder / _FILE, known

    def forget(self) -> None:
        """Remember nothing any more; the file stays."""
        with self._lock:
            self._known, self._path = set(), None

    def pays(self, what: str, *facts: object, trial: Callable[[], bool]) -> bool:
        """Whether a form is right, and sooner; `trial` finds out, and runs only if that is not known.

        Args:
            what: the form that is tried.
            facts: shapes and the like that the outcome depends on.
            trial: compares it with the plain form.
        """
        with self._lock:
            path = self._path
            key = "|".join(map(str, (what, *facts, torch.get_num_threads(), self._code)))
            if key in self._known:
                log.info("%s pays here, as was found before", what)
                return True
        if not trial():
            return False
        if path is not None:
            with self._lock:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known.add(key)
                _write(path, sorted(self._known))
        return True


TRIALS = Trials()
"""Those of this process."""


def code_digest() -> str:
    """Digest of what computes: processor, torch, and the compiled kernels."""
    digest = hashlib.sha256(f"{_processor()}|{torch.__version__}".encode())
    if (file := kernels_file()) is not None:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _read(path: Path) -> set[str]:
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        log.warning("trials.unreadable: %s", type(error).__name__)
        return set()
    return {each for each in given if isinstance(each, str)} if isinstance(given, list) else set()


def _write(path: Path, known: list[str]) -> None:
    """Replace the file; a folder that cannot be written to costs a trial at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_FILE)
        with os.fdopen(handle, "w") as file:
            json.dump(known, file)
        Path(name).replace(path)
    except OSError as error:
        log.info("trials.not_kept: %s", error.strerror)
