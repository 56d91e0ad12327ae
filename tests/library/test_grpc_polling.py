"""How gRPC waits for sockets in the processes of services: set before it is imported, and by names that it knows."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, stagemesh.services
print(os.environ.get("GRPC_EXPERIMENTS"))
import asyncio, grpc
async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(0)
asyncio.run(main())
"""


def run(**env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "", "gRPC does not know the names any more: services/__init__.py"
    return done.stdout.strip()


def test_services_wait_without_the_event_engine() -> None:
    assert run() == "-event_engine_client,-event_engine_listener"


@pytest.mark.parametrize("own", ["", "-event_engine_client"])
def test_what_the_operator_has_set_stays(own: str) -> None:
    assert run(GRPC_EXPERIMENTS=own) == own


def test_grpc_is_not_imported_before_the_setting() -> None:
    names = "'grpc' in sys.modules"
    script = f"import sys, stagemesh.services; assert not {names}; import stagemesh.services.cache.config"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
