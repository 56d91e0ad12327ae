"""What the commands say before they start or reach anything."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stagemesh.cli import doctor as doctor_module
from stagemesh.cli.doctor import Check
from stagemesh.local import etcd_server

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples/demo_model/model"
COMMANDS = "serve demo generate infer status bench verify scale deploy undeploy router stage cache registry doctor version"


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server.getsockname()[1]


def _one_line(result, *words):
    assert result.exit_code == 1
    assert result.stderr.strip().count("\n") == 0, result.stderr
    for word in words:
        assert word in result.stderr


def test_help_lists_every_command(stagemesh):
    text = stagemesh("--help").stdout
    assert [name for name in COMMANDS.split() if f"  {name} " not in text] == []


@pytest.mark.parametrize(
    "command",
    ["serve", "demo", "generate", "infer", "status", "bench", "scale", "deploy", "undeploy", "doctor"],
)
def test_every_command_has_help(stagemesh, command):
    result = stagemesh(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_serve_says_that_a_port_is_taken(stagemesh, taken):
    free = ("--grpc-port", 0, "--registry-port", 0)
    _one_line(stagemesh("serve", MODEL, "--http-port", taken, *free), f"http port {taken} is taken")


def _serve(stagemesh, source, *flags):
    return stagemesh("serve", source, "--http-port", 0, "--grpc-port", 0, "--registry-port", 0, *flags)


def test_serve_says_that_a_checkpoint_is_missing(stagemesh, tmp_path):
    _one_line(_serve(stagemesh, tmp_path / "none"), "no checkpoint folder")
    _one_line(_serve(stagemesh, tmp_path), "config.json")


def test_serve_says_that_a_checkpoint_is_truncated(stagemesh, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    _one_line(_serve(stagemesh, folder), "model.safetensors", "truncated")


def test_serve_says_that_an_architecture_is_unsupported(stagemesh, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddModel"]}))
    _one_line(_serve(stagemesh, folder), "OddModel")


def test_serve_says_that_there_is_no_etcd(stagemesh, monkeypatch):
    monkeypatch.setattr(etcd_server.importlib.util, "find_spec", lambda name: None)
    _one_line(_serve(stagemesh, MODEL), "no etcd", "stagemesh[local]", "--etcd")


def test_serve_says_that_the_given_etcd_does_not_answer(stagemesh):
    result = _serve(stagemesh, MODEL, "--etcd", "127.0.0.1:9")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("stagemesh: ")]
    assert len(errors) == 1, result.stderr
    assert "127.0.0.1:9" in errors[0]
    assert "Traceback" not in result.stderr


def test_doctor_passes_here_and_its_json_can_be_read(stagemesh):
    result = stagemesh("doctor", "--json")
    answer = json.loads(result.stdout)
    names = {check["name"] for check in answer["checks"]}
    assert {"python", "packages", "torch", "etcd", "ports", "memory", "cores", "shared memory"} <= names
    assert result.exit_code == (0 if answer["ok"] else 1)


def test_doctor_fails_with_status_1_and_says_what_to_do(stagemesh, monkeypatch):
    monkeypatch.setattr(doctor_module, "CHECKS", (lambda: Check("x", "fail", "broken", "mend it"),))
    result = stagemesh("doctor")
    assert result.exit_code == 1
    assert "fail  x              broken -> mend it" in result.stdout


def test_doctor_warns_of_a_taken_port(taken, monkeypatch):
    monkeypatch.setattr(doctor_module, "is_free", lambda port: port != 8001)
    check = doctor_module.ports()
    assert (check.result, check.found) == ("warn", "taken: grpc 8001")


def test_doctor_fails_without_packages(monkeypatch):
    monkeypatch.setattr(doctor_module, "missing_packages", lambda: ["torch"])
    check = doctor_module.packages()
    assert check.result == "fail"
    assert "torch" in check.found


def test_version(stagemesh):
    import stagemesh as package

    assert stagemesh("version").stdout.strip() == package.__version__


@pytest.mark.parametrize("kind", ["router", "stage", "cache", "registry"])
def test_a_services_flags_are_passed_on(kind):
    command = [sys.executable, "-c", "from stagemesh.cli import main; main()", kind]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "--etcd" in shown.stdout
    assert "--metrics-port" in shown.stdout
    wrong = subprocess.run([*command, "--no-such-flag"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1
    assert "--no-such-flag" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_service_whose_packages_are_missing_says_what_to_install(stagemesh, monkeypatch):
    from stagemesh.cli import passthrough

    monkeypatch.setattr(passthrough.importlib.util, "find_spec", lambda name: None)
    _one_line(stagemesh("stage"), "torch", "stagemesh[stage]")


def test_an_unexpected_error_is_one_line_too(stagemesh, monkeypatch):
    from stagemesh.cli import status

    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(status, "Client", broken)
    _one_line(stagemesh("status"), "internal error: ZeroDivisionError: oops")


def test_a_folder_of_that_name_where_one_stands_is_not_taken_for_the_package(tmp_path):
    (tmp_path / "stagemesh").mkdir()
    (tmp_path / "stagemesh" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    program = Path(sys.executable).with_name("stagemesh")
    done = subprocess.run(
        [program, "cache", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_certificate_that_is_not_there_is_named(stagemesh):
    _one_line(
        stagemesh("deploy", MODEL, "--stages", "2", "--certificate", "no.json"), "--certificate", "no.json"
    )
