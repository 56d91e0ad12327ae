"""Commands that become another program of this package: one service, `profile` or `verify`. Its flags are passed on."""

import importlib.util
import os
import sys

import typer

from stagemesh.cli import cache, cache_report
from stagemesh.cli.guard import one_line_errors
from stagemesh.errors import ConfigError

# Command: module, what it needs beyond the base install, the extra that brings it, help.
_PROGRAMS = {
    "router": (
        "router",
        ("transformers", "starlette", "uvicorn"),
        "router",
        "Run a router (gRPC and OpenAI-compatible HTTP).",
    ),
    "stage": ("stage", ("torch", "safetensors", "transformers"), "stage", "Run a stage node."),
    "cache": ("cache", (), "cache", "Run a cache; `cache stats` and `cache invalidate` ask those of a mesh."),
    "registry": ("registry", (), "registry", "Run a registry (control plane)."),
    "profile": (
        "stage.profile",
        ("torch", "safetensors", "transformers"),
        "stage",
        "Measure this machine on MODEL's own layers, for `plan`.",
    ),
    "verify": (
        "stage.verify",
        ("torch", "safetensors", "transformers"),
        "stage",
        "Run MODEL split over --stages N against the whole and report the difference.",
    ),
}
_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command, (module, needs, extra, text) in _PROGRAMS.items():
        _register(app, command, module, needs, extra, text)


def _register(
    app: typer.Typer, command: str, module: str, needs: tuple[str, ...], extra: str, text: str
) -> None:
    @app.command(command, help=text, context_settings=dict(_SETTINGS), add_help_option=False)
    @one_line_errors
    def become(context: typer.Context) -> None:
        if command == "cache" and context.args and context.args[0] in cache_report.COMMANDS:
            cache.app(context.args, prog_name="stagemesh cache")
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{command} needs {', '.join(missing)}: install it with `pip install 'stagemesh[{extra}]'`"
            )
        sys.stdout.flush()
        sys.stderr.flush()
        program = [sys.executable, "-P", "-m", f"stagemesh.services.{module}", *context.args]
        os.execv(sys.executable, program)  # noqa: S606
