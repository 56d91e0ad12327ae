"""The `stagemesh` command: one file per group of commands, each a thin layer over the library.

Errors are one line on stderr and a non-zero exit status; what a program may read comes with `--json`.
"""

import sys


def main() -> None:
    """Entry point of the `stagemesh` command. Imports late, so that Ctrl-C meanwhile is no traceback."""
    try:
        from stagemesh.cli.main import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="stagemesh")
