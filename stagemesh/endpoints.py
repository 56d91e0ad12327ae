"""Spelling of etcd endpoints."""

from stagemesh.errors import ConfigError


def parse_endpoints(endpoints: str) -> list[str]:
    """Split `host:port,host:port`; raise `errors.ConfigError` when one is not of that form."""
    result = []
    for endpoint in filter(None, (part.strip() for part in endpoints.split(","))):
        address = endpoint.removeprefix("http://").removeprefix("https://").rstrip("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"etcd endpoint {endpoint[:80]!r} is not host:port")
        result.append(address)
    if not result:
        raise ConfigError("no etcd endpoint given; expected host:port,host:port")
    return result
