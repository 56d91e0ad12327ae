"""Free ports on this machine."""

import random
import socket

from stagemesh.errors import ConfigError

# Below the range that Linux gives to outgoing connections, so that none of those can take a port in between.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 500


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
            server.listen(1)
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1", *, avoid: frozenset[int] = frozenset()) -> int:
    """A port that is free now; raise `ConfigError` when none is found."""
    for _ in range(_ATTEMPTS):
        port = random.randint(_FIRST, _LAST)
        if port not in avoid and is_free(port, host):
            return port
    raise ConfigError(f"no free port between {_FIRST} and {_LAST} on {host}")


def claim(wanted: dict[str, int], host: str = "127.0.0.1") -> dict[str, int]:
    """Ports by use, 0 replaced by a free one; raise `ConfigError` naming every port that is taken."""
    given = [port for port in wanted.values() if port]
    taken = [
        f"{use} port {port} is taken" for use, port in wanted.items() if port and not is_free(port, host)
    ]
    if len(given) != len(set(given)):
        taken.append("two of the given ports are the same")
    if taken:
        raise ConfigError("; ".join(taken) + ": stop what listens there, or choose another port")
    claimed: dict[str, int] = {}
    for use, port in wanted.items():
        claimed[use] = port or free_port(host, avoid=frozenset([*given, *claimed.values()]))
    return claimed
