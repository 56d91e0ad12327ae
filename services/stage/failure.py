"""What a replica's record says of why it failed: one line, for an operator, without the paths of this machine. Pure."""

import os
import re

from stagemesh.errors import StagemeshError

MAX_CHARS = 300
# An absolute path, of which only the last part is told.
_PATH = re.compile(r"(?:/[^\s/'\":,]+)+/([^\s/'\":,]+)")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def told(error: BaseException) -> str:
    """One line on an error."""
    if isinstance(error, StagemeshError):
        text = error.message
    elif isinstance(error, OSError) and error.errno:
        name = (
            os.path.basename(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
        )
        text = f"{name}: {os.strerror(error.errno)}" if name else os.strerror(error.errno)
    elif isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        text = "not enough memory to load it"
    else:
        lines = str(error).splitlines()
        text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return without_paths(" ".join(text.split()))[:MAX_CHARS]


def without_paths(text: str) -> str:
    """The text with only the last part of each absolute path."""
    return _PATH.sub(r"\1", text)
