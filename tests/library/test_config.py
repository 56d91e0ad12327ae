"""Settings from flags, environment and file; every fault at once."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from stagemesh.config import ServiceConfig, load_config
from stagemesh.errors import ConfigError


class Demo(ServiceConfig):
    """A service for tests."""

    threads: int = Field(0, ge=0, description="compute threads; 0 means all cores (100%)")
    ratio: float = Field(0.5, gt=0, allow_inf_nan=False, description="a share")
    canary: bool = Field(True, description="check before serving")
    policy: Literal["round_robin", "p2c_ewma"] = Field("p2c_ewma", description="how to choose")
    models: list[str] = Field(default_factory=list, description="models to preload")
    folder: Path | None = Field(None, description="where to keep things")


class Needy(ServiceConfig):
    node_id: str


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("STAGEMESH_"):
            monkeypatch.delenv(name)


def load(*argv: str) -> Demo:
    return load_config(Demo, list(argv), prog="demo")


def faults(*argv: str, kind: type[ServiceConfig] = Demo) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, list(argv), prog="demo")
    return caught.value.message.splitlines()


def test_defaults_bind_loopback():
    config = load()
    assert (config.host, config.port, config.metrics_port, config.log_level) == ("127.0.0.1", 0, 0, "info")
    assert (config.canary, config.models, config.folder) == (True, [], None)


def test_flags_over_environment_over_file(tmp_path, monkeypatch):
    file = tmp_path / "demo.yaml"
    file.write_text("threads: 1\nzone: from-file\nlease-ttl-s: 7\nmodels: [a, b]\n")
    monkeypatch.setenv("STAGEMESH_THREADS", "2")
    monkeypatch.setenv("STAGEMESH_ZONE", "from-environment")
    config = load("--config", str(file), "--threads", "3")
    assert (config.threads, config.zone, config.lease_ttl_s, config.models) == (
        3,
        "from-environment",
        7,
        ["a", "b"],
    )
    monkeypatch.setenv("STAGEMESH_CONFIG", str(file))
    monkeypatch.delenv("STAGEMESH_ZONE")
    assert load().zone == "from-file"


def test_every_kind_of_value_as_flag():
    config = load(
        "--threads=4", "--ratio", "0.25", "--no-canary", "--policy", "round_robin", "--models", "a, b,", "--folder", "/x",
        "--etcd", "a:1,b:2",
    )  # fmt: skip
    assert (config.threads, config.ratio, config.canary, config.policy) == (4, 0.25, False, "round_robin")
    assert (config.models, config.folder, config.etcd) == (["a", "b"], Path("/x"), "a:1,b:2")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("no", False), ("off", False)])
def test_booleans_from_the_environment(monkeypatch, text, value):
    monkeypatch.setenv("STAGEMESH_CANARY", text)
    assert load().canary is value


def test_empty_environment_variable_is_unset(monkeypatch):
    monkeypatch.setenv("STAGEMESH_THREADS", "")
    assert load().threads == 0


def test_all_faults_at_once_each_naming_its_source(tmp_path, monkeypatch):
    file = tmp_path / "demo.yaml"
    file.write_text("lease_ttl_s: -1\nthread: 3\nmetrics_port: true\n")
    monkeypatch.setenv("STAGEMESH_RATIO", "nan")
    told = faults("--config", str(file), "--port", "eighty", "--polcy=x", "--policy", "best")
    assert len(told) == 7
    text = "\n".join(told)
    assert "--port: " in text
    assert "'eighty'" in text
    assert "--polcy: unknown flag; did you mean --policy?" in told
    assert "--policy: input should be 'round_robin' or 'p2c_ewma', got 'best'" in told
    assert "STAGEMESH_RATIO: " in text
    assert "lease_ttl_s in demo.yaml: " in text
    assert "thread in demo.yaml: unknown setting; did you mean threads?" in told
    assert "metrics_port in demo.yaml: must be a number, got true" in told


def test_missing_setting_says_how_to_give_it():
    assert faults(kind=Needy) == ["--node-id: required (or set STAGEMESH_NODE_ID)"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "is not YAML at line 2"),
        ("- a\n- b\n", "must hold `name: value` lines"),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_file_that_is_no_settings(tmp_path, content, said):
    file = tmp_path / "demo.yaml"
    file.write_bytes(content if isinstance(content, bytes) else (content + "\n").encode())
    (told,) = faults("--config", str(file))
    assert said in told


def test_absent_file_beside_another_fault(tmp_path):
    told = faults("--config", str(tmp_path / "absent.yaml"), "--port", "-1")
    assert len(told) == 2
    assert "No such file" in told[0]
    assert told[1].startswith("--port: ")


def test_empty_file_is_fine(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("# nothing yet\n")
    assert load("--config", str(file)).threads == 0


@pytest.mark.parametrize("argv", [["--port"], ["--port", "1", "loose"], ["--no-canary=1"]])
def test_malformed_command_line(argv):
    assert faults(*argv)


def test_flags_are_not_abbreviated():
    assert faults("--thread", "3") == ["--thread: unknown flag; did you mean --threads?"]


def test_loose_words_are_told():
    assert faults("serve", "--port", "1") == ["'serve': unexpected argument"]


@pytest.mark.parametrize("bad", ["nowhere", "a:1,b", "a:99999", ","])
def test_etcd_endpoints_are_checked_with_everything_else(bad):
    told = faults("--etcd", bad, "--port", "-1")
    assert len(told) == 2
    assert told[0].startswith("--port: ")
    assert told[1].startswith("--etcd: ")
    assert "host:port" in told[1]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A service for tests." in text
    for name in Demo.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"STAGEMESH_{name.upper()}" in text
    assert "all cores (100%)" in text
    assert "one of round_robin, p2c_ewma [default: p2c_ewma]" in text
    assert "--canary, --no-canary" in text
    assert "[default: on]" in text
    assert "[default: 127.0.0.1:2379]" in text


def test_config_cannot_change():
    with pytest.raises(ValueError):
        load().port = 1
