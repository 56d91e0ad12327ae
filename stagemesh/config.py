"""Configuration: flags, then STAGEMESH_* environment, then a YAML file. Read once; all faults told at once."""

import difflib
import os
import socket
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from stagemesh.config_flags import ENV_PREFIX, Parser, base_type, env_name, flag_name
from stagemesh.endpoints import parse_endpoints
from stagemesh.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


class ServiceConfig(BaseModel):
    """What every service can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all interfaces"
    )
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes any free one")
    etcd: str = Field("127.0.0.1:2379", min_length=1, description="etcd endpoints, HOST:PORT,HOST:PORT,...")
    etcd_ca: Path | None = Field(
        None, description="PEM file of the CA that signed etcd's certificate (turns TLS on)"
    )
    etcd_cert: Path | None = Field(None, description="PEM file of the client certificate for etcd")
    etcd_key: Path | None = Field(None, description="PEM file of the client certificate's key")
    metrics_port: int = Field(0, ge=0, le=65535, description="port of Prometheus /metrics; 0 turns it off")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log level shown"
    )
    zone: str = Field(
        "",
        max_length=63,
        description="failure zone or rack of this machine; peers in one zone prefer one another",
    )
    lease_ttl_s: int = Field(
        5, ge=1, le=3600, description="seconds after which a silent process counts as gone"
    )
    advertise: str = Field(
        "",
        pattern=r"^(\S+:\d{1,5})?$",
        max_length=255,
        description="HOST:PORT that others reach this service at; needed when it listens on all interfaces",
    )

    @field_validator("etcd")
    @classmethod
    def _check_etcd(cls, value: str) -> str:
        try:
            parse_endpoints(value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return value

    def address(self, bound_port: int) -> str:
        """HOST:PORT to announce for a server bound at `bound_port`: `advertise`, else the host listened on.

        A wildcard host is replaced by this machine's name.
        """
        if self.advertise:
            return self.advertise
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "[::]") else self.host
        return f"{host}:{bound_port}"


def load_config(kind: type[C], argv: list[str] | None = None, *, prog: str) -> C:
    """Read a `kind` from `argv` (default: the process's), the environment and the file named by `--config`.

    `--help` prints what can be set and exits. Raises `errors.ConfigError` that lists every fault, one a line.
    """
    faults: list[str] = []
    parser = Parser(kind, prog, faults)
    flags, unknown = parser.parse_known_args(argv)
    faults.extend(
        _unknown(unknown, [option for action in parser._actions for option in action.option_strings])
    )
    given = {name: value for name, value in vars(flags).items() if value is not None}
    config_file = given.pop("config", None) or os.environ.get(ENV_PREFIX + "CONFIG")
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    if config_file:
        for name, value in _read_file(kind, str(config_file), faults).items():
            values[name], source[name] = value, f"{name} in {Path(config_file).name}"
    for name in kind.model_fields:
        value = os.environ.get(env_name(name), "")
        if value:
            values[name], source[name] = _split(kind.model_fields[name], value), env_name(name)
    for name, value in given.items():
        values[name], source[name] = _split(kind.model_fields[name], value), flag_name(name)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        faults.extend(_explain(item, source) for item in error.errors(include_url=False))
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _split(field: FieldInfo, value: Any) -> Any:
    if isinstance(value, str) and base_type(field.annotation) in (list, tuple, set, frozenset):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _read_file(kind: type[BaseModel], path: str, faults: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"--config: cannot read {path}: {error.strerror}")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        faults.append(f"--config: {path} is not YAML{line}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        faults.append(f"--config: {path} must hold `name: value` lines")
        return {}
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in kind.model_fields:
            faults.append(
                f"{key} in {Path(path).name}: unknown setting{_nearest(name, list(kind.model_fields))}"
            )
        elif isinstance(value, bool) and base_type(kind.model_fields[name].annotation) in (int, float):
            faults.append(f"{key} in {Path(path).name}: must be a number, got {str(value).lower()}")
        elif value is not None:
            values[name] = value
    return values


def _unknown(words: list[str], options: list[str]) -> list[str]:
    faults, after_flag = [], False
    for word in words:
        flag, has_value, _ = word.partition("=")
        if flag.startswith("-"):
            faults.append(f"{flag}: unknown flag{_nearest(flag, options)}")
            after_flag = not has_value
        elif after_flag:  # the unknown flag's value
            after_flag = False
        else:
            faults.append(f"{word!r}: unexpected argument")
    return faults


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _explain(item: typing.Any, source: dict[str, str]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    message = str(item["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if item["type"] == "missing":
        return f"{flag_name(name)}: required (or set {env_name(name)})"
    message = message[:1].lower() + message[1:]
    if not name:
        return message
    got = item.get("input")
    shown = f", got {str(got)[:80]!r}" if isinstance(got, str | int | float) else ""
    return f"{source.get(name, flag_name(name))}: {message}{shown}"
