import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "client"))

from scripted_router import running_router


@pytest.fixture
def router():
    with running_router() as servicer:
        yield servicer


@pytest.fixture
def stagemesh(monkeypatch):
    """Run a command line in this process; the result has exit_code, stdout and stderr."""
    from stagemesh.cli.main import app

    for name in ("STAGEMESH_ADDRESS", "STAGEMESH_REGISTRY", "STAGEMESH_ETCD", "STAGEMESH_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()
    return lambda *arguments, **more: runner.invoke(app, [str(item) for item in arguments], **more)
