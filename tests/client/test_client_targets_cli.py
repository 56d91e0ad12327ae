"""Commands that are given several routers."""

import json

from resuming_router import WORDS, ResumingRouter
from typer.testing import CliRunner

from stagemesh.cli.main import app


def test_generate_goes_on_at_the_other_target():
    routers = [ResumingRouter(), ResumingRouter()]
    try:
        for router in routers:
            router.break_after = 2
        targets = ",".join(router.address for router in routers)
        result = CliRunner().invoke(app, ["generate", "--target", targets, "--model", "m", "--json", "hello"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["text"] == "".join(WORDS)
        assert all(router.requests for router in routers)
    finally:
        for router in routers:
            router.kill()


def test_a_target_that_is_none_is_named():
    result = CliRunner().invoke(app, ["generate", "--target", "nowhere", "--model", "m", "hello"])
    assert result.exit_code == 1
    assert "'nowhere' is not host:port" in result.stderr
