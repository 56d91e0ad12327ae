"""API keys and their tenants."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stagemesh.errors import ConfigError, Unauthenticated

from .admission.priority import BY_NAME, Priority


@dataclass(frozen=True, slots=True)
class Credential:
    """What an API key stands for: a tenant, and the highest priority that its requests may have."""

    tenant: str
    highest: Priority = Priority.HIGH


DEFAULT = Credential("default")
_CREDENTIAL = {"tenant", "max_priority"}


class Auth:
    """Maps an `Authorization` value to its credential; without keys everybody is the default tenant."""

    def __init__(self, keys: Mapping[str, Credential] | None = None) -> None:
        self._keys = {key.encode(): owner for key, owner in keys.items()} if keys is not None else None

    def credential(self, authorization: str) -> Credential:
        """What `Bearer <key>` stands for; raises `Unauthenticated`. Takes equally long for every wrong key."""
        if self._keys is None:
            return DEFAULT
        scheme, _, key = authorization.partition(" ")
        if not authorization:
            raise Unauthenticated("no API key: send 'Authorization: Bearer <key>'", field="authorization")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the Authorization scheme must be Bearer", field="authorization")
        given = key.strip().encode()
        found = None
        for known, owner in self._keys.items():
            if hmac.compare_digest(known, given):
                found = owner
        if found is None:
            raise Unauthenticated("unknown API key", field="authorization")
        return found


def load_keys(path: Path) -> dict[str, Credential]:
    """The keys of a file, each a tenant or `{tenant, max_priority}`; raises `ConfigError` that shows no key."""
    content, _ = read_sections(path)
    if not content:
        raise ConfigError(f"api_keys: {path} must be a mapping of API key to tenant with at least one entry")
    if not all(isinstance(key, str) and key for key in content):
        raise ConfigError(f"api_keys: in {path} every key must be a text that is not empty")
    return {key: _credential(value, path) for key, value in content.items()}


def read_sections(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The keys, and the tenants, of a YAML file: a mapping of key to tenant, or `keys:` with such a mapping and `tenants:`.

    Raises:
        ConfigError: it cannot be read, or is neither; shows no key.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"api_keys: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"api_keys: {path} is not YAML") from None
    if not isinstance(content, dict):
        raise ConfigError(f"api_keys: {path} must be a mapping of API key to tenant with at least one entry")
    keys = content.get("keys")
    # A key may be called "keys": then what it stands for is a credential.
    if not isinstance(keys, dict) or (keys and set(keys) <= _CREDENTIAL):
        return content, {}
    if set(content) - {"keys", "tenants"}:
        raise ConfigError(f"api_keys: beside keys, {path} may have tenants and nothing else")
    tenants = content.get("tenants") or {}
    if not isinstance(tenants, dict) or not all(isinstance(name, str) and name for name in tenants):
        raise ConfigError(f"api_keys: in {path} tenants must be a mapping of names of tenants")
    return keys, tenants


def _credential(value: Any, path: Path) -> Credential:
    entry = {"tenant": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or set(entry) - _CREDENTIAL:
        raise ConfigError(
            f"api_keys: in {path} every value must be a tenant, or a mapping with tenant and max_priority"
        )
    tenant, highest = entry.get("tenant"), entry.get("max_priority", Priority.HIGH.name.lower())
    if not isinstance(tenant, str) or not tenant:
        raise ConfigError(f"api_keys: in {path} every tenant must be a text that is not empty")
    if not isinstance(highest, str) or highest not in BY_NAME:
        raise ConfigError(f"api_keys: in {path} max_priority must be high, normal or low")
    return Credential(tenant, BY_NAME[highest])
