"""Names and ports of a mesh's routers: the first one's are "router", "http" and "grpc", further ones are numbered."""

from collections.abc import Mapping

from stagemesh.local.ports import is_free

KINDS = ("http", "grpc")
_LAST = 65_535


def suffixes(count: int) -> list[str]:
    """What tells the routers' names and ports apart: "", "-1", "-2" and so on."""
    return ["", *(f"-{index}" for index in range(1, count))]


def further_ports(count: int, wanted: Mapping[str, int], host: str) -> dict[str, int]:
    """Ports of the routers after the first one, by use: the next free ones, or 0 (any) where there is none or it is 0."""
    given = set(wanted.values())
    further: dict[str, int] = {}
    for kind in KINDS:
        port = wanted[kind]
        for suffix in suffixes(count)[1:]:
            while port and (port in given or not is_free(port, host)):
                port = port + 1 if port < _LAST else 0
            given.add(port)
            further[kind + suffix] = port
    return further
