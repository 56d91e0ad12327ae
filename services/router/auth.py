"""API keys and their tenants."""

import hmac
from collections.abc import Mapping
from pathlib import Path

import yaml

from stagemesh.errors import ConfigError, Unauthenticated

DEFAULT_TENANT = "default"


class Auth:
    """Maps an `Authorization` value to a tenant; without keys everybody is the default tenant."""

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._keys = {key.encode(): tenant for key, tenant in keys.items()} if keys is not None else None

    def tenant(self, authorization: str) -> str:
        """The tenant of `Bearer <key>`; raises `Unauthenticated`. Takes equally long for every wrong key."""
        if self._keys is None:
            return DEFAULT_TENANT
        scheme, _, key = authorization.partition(" ")
        if not authorization:
            raise Unauthenticated("no API key: send 'Authorization: Bearer <key>'", field="authorization")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the Authorization scheme must be Bearer", field="authorization")
        given = key.strip().encode()
        found = ""
        for known, tenant in self._keys.items():
            if hmac.compare_digest(known, given):
                found = tenant
        if not found:
            raise Unauthenticated("unknown API key", field="authorization")
        return found


def load_keys(path: Path) -> dict[str, str]:
    """Read a YAML mapping of key to tenant; raises `ConfigError` that shows no key."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"api_keys: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"api_keys: {path} is not YAML") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"api_keys: {path} must be a mapping of API key to tenant with at least one entry")
    if not all(
        isinstance(key, str) and key and isinstance(name, str) and name for key, name in content.items()
    ):
        raise ConfigError(f"api_keys: in {path} every key and every tenant must be a text that is not empty")
    return dict(content)
