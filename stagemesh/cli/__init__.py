"""The `stagemesh` command: one file per group of commands, each a thin layer over the library.

Errors are one line on stderr and a non-zero exit status; what a program may read comes with `--json`.
"""

from stagemesh.cli.main import app, main

__all__ = ["app", "main"]
