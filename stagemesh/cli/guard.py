"""Errors of a command: one clear line on stderr and a non-zero exit status, never a traceback."""

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from stagemesh.errors import StagemeshError

P = ParamSpec("P")

_INTERRUPTED = 130


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command. With STAGEMESH_DEBUG set, unexpected errors keep their traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except StagemeshError as error:
            fail(error.message)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except Exception as error:
            if os.environ.get("STAGEMESH_DEBUG"):
                raise
            fail(f"internal error: {type(error).__name__}: {error} (STAGEMESH_DEBUG=1 shows where)")

    return guarded


def fail(message: str) -> None:
    """Print the message's lines to stderr and exit with status 1."""
    for line in message.strip().splitlines():
        typer.echo(f"stagemesh: {line}", err=True)
    raise typer.Exit(1) from None
