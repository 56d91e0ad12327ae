"""What a forked child does to be a stage service: what both forkers share."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def become_stage(argv: list[str], ready: Callable[[], None]) -> NoReturn:
    """Run `ready`, then the service with the flags `argv`; end the process with its status, whatever happens."""
    status = 1
    try:
        ready()
        # As the command line shows it, for whoever looks at the process.
        sys.argv = ["stagemesh-stage", *argv]
        from ..__main__ import start

        start()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
