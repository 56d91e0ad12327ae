"""Settings as command-line flags: their names, their parser and what `--help` says about them."""

import argparse
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stagemesh.errors import ConfigError

ENV_PREFIX = "STAGEMESH_"


def flag_name(name: str) -> str:
    """`lease_ttl_s` -> `--lease-ttl-s`."""
    return "--" + name.replace("_", "-")


def env_name(name: str) -> str:
    """`lease_ttl_s` -> `STAGEMESH_LEASE_TTL_S`."""
    return ENV_PREFIX + name.upper()


class Parser(argparse.ArgumentParser):
    """A flag for each field of `kind`, all optional and all text; `--help` tells what each may be.

    A malformed command line raises `errors.ConfigError` with the `faults` so far.
    """

    def __init__(self, kind: type[BaseModel], prog: str, faults: list[str]) -> None:
        super().__init__(
            prog=prog,
            description=(kind.__doc__ or "").strip(),
            epilog="Each setting is taken from its flag, else from its environment variable, else from the YAML file.",
            allow_abbrev=False,
        )
        self._faults = faults
        self.add_argument(
            "--config",
            metavar="FILE",
            help=f"YAML file of settings, names as below [env: {ENV_PREFIX}CONFIG]",
        )
        for name, field in kind.model_fields.items():
            help_text = _help(name, field)
            if base_type(field.annotation) is bool:
                self.add_argument(
                    flag_name(name),
                    dest=name,
                    action=argparse.BooleanOptionalAction,
                    default=None,
                    help=help_text,
                )
            else:
                self.add_argument(
                    flag_name(name), dest=name, metavar=_metavar(field), default=None, help=help_text
                )

    def error(self, message: str) -> NoReturn:
        """Report instead of printing the usage and leaving."""
        message = message.removeprefix("argument ")
        raise ConfigError("\n".join([*self._faults, message]))


def _help(name: str, field: FieldInfo) -> str:
    parts = [field.description or name.replace("_", " ")]
    choices = _choices(field.annotation)
    if choices:
        parts.append(f"one of {', '.join(choices)}")
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        if isinstance(value, bool):
            value = "on" if value else "off"
        elif isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        default = f"default: {'none' if value is None or value == '' else value}"
    return f"{'; '.join(parts)} [{default}] [env: {env_name(name)}]".replace("%", "%%")


def _metavar(field: FieldInfo) -> str:
    base = base_type(field.annotation)
    known = {int: "N", float: "X", str: "TEXT", Path: "PATH", list: "A,B,...", tuple: "A,B,..."}
    return "CHOICE" if _choices(field.annotation) else known.get(base, "VALUE")


def base_type(annotation: Any) -> Any:
    """The plain type of an annotation: `int | None` -> int, `list[str]` -> list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return base_type(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return base_type(inner[0])
    return origin or annotation


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ():
        if found := _choices(part):
            return found
    return []
