"""How service processes start and end."""

import asyncio
import signal
import sys

import pytest

PROGRAM = """
import asyncio, sys
from stagemesh.errors import ConfigError
from stagemesh.grpc_server import run, serve_until_signal
def say(word):
    print(word, flush=True)
async def main():
    if sys.argv[1] == "config":
        raise ConfigError("--port: not a number\\n--zone: too long")
    if sys.argv[1] == "bug":
        raise KeyError("bug")
    try:
        if sys.argv[1] == "start":
            say("up")
            await asyncio.sleep(60)
        asyncio.get_running_loop().call_soon(say, "up")
        await serve_until_signal()
        if sys.argv[1] == "stuck":
            say("winding down")
            await asyncio.sleep(60)
    finally:
        say("cleaned")
run(main())
"""


async def _run(*arguments: str):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_run_tells_faults_in_lines_without_a_traceback():
    process = await _run("config")
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err == b"stagemesh: --port: not a number\nstagemesh: --zone: too long\n"


async def test_run_does_not_hide_a_bug():
    process = await _run("bug")
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["start", "serve"])
async def test_run_ends_cleanly_on_a_signal(number, when):
    process = await _run(when)
    assert await process.stdout.readline() == b"up\n"
    process.send_signal(number)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"cleaned\n", b"")


async def test_second_signal_ends_a_slow_end():
    process = await _run("stuck")
    assert await process.stdout.readline() == b"up\n"
    process.terminate()
    assert await process.stdout.readline() == b"winding down\n"
    process.terminate()
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"cleaned\n", b"")


@pytest.mark.parametrize("installed", [True, False])
async def test_a_service_runs_on_uvloop_where_it_is_installed(installed):
    program = f"""
import asyncio, sys
if not {installed}:
    sys.modules["uvloop"] = None
from stagemesh.process import run
async def main():
    print(type(asyncio.get_running_loop()).__module__)
run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().startswith("uvloop" if installed else "asyncio.")
