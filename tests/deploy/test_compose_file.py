"""The compose file against its schema, and what the schema cannot see."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from deploy_files import DEPLOY, Document, compose, compose_schema, dockerfile_stages

TARGETS = {"router", "cache", "registry", "stage", "cli"}


def validate(document: Document) -> None:
    jsonschema.Draft7Validator(compose_schema()).validate(document)


def faults(document: Document) -> Iterator[str]:
    """What would only be found by starting it."""
    services = document["services"]
    targets = dockerfile_stages((DEPLOY / "Dockerfile").read_text())
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if needed not in services:
                yield f"{name}: depends on {needed}, which does not exist"
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[needed]:
                yield f"{name}: waits for the health of {needed}, which has no check"
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: publishes {port} beyond loopback"
        build = service.get("build")
        if build and build["target"] not in targets:
            yield f"{name}: no target {build['target']} in the Dockerfile"
        if build and service["image"].split(":")[0] != f"stagemesh/{build['target']}":
            yield f"{name}: image {service['image']} built from target {build['target']}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if re.fullmatch(r"[a-z][a-z0-9-]*", source) and source not in document["volumes"]:
                yield f"{name}: volume {source} is not declared"


def test_is_valid():
    validate(compose())
    assert list(faults(compose())) == []


def test_has_the_whole_mesh():
    services = compose()["services"]
    assert {
        "etcd-0",
        "etcd-1",
        "etcd-2",
        "jaeger",
        "registry",
        "registry-b",
        "cache",
        "router",
        "stage-a",
        "stage-b",
    } <= set(services)
    assert {service["build"]["target"] for service in services.values() if "build" in service} == TARGETS
    assert all(services[name]["deploy"]["replicas"] == 2 for name in ("stage-a", "stage-b"))
    published = {port for service in services.values() for port in service.get("ports", [])}
    assert {"127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:16686:16686"} <= published


def test_every_service_exports_its_spans_to_jaeger():
    services = compose()["services"]
    for name in ("registry", "registry-b", "cache", "router", "stage-a", "stage-b"):
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"


def test_no_container_may_do_more_than_it_needs():
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        if "build" in service:
            assert service["read_only"] is True, name


BROKEN_FOR_THE_SCHEMA = {
    "misspelt field": lambda d: d["services"]["router"].update(heathcheck={}),
    "unknown condition": lambda d: d["services"]["cache"]["depends_on"].update(
        {"etcd-0": {"condition": "ready"}}
    ),
    "replicas as text": lambda d: d["services"]["stage-a"]["deploy"].update(replicas="two"),
    "ports as a mapping": lambda d: d["services"]["router"].update(ports={"8000": 8000}),
    "unknown section": lambda d: d.update(service={}),
}


@pytest.mark.parametrize("case", BROKEN_FOR_THE_SCHEMA)
def test_schema_goes_red_on_a_broken_file(case):
    document = copy.deepcopy(compose())
    BROKEN_FOR_THE_SCHEMA[case](document)
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


BROKEN_FOR_THE_CHECKS: dict[str, tuple[str, Any]] = {
    "unpublished loopback": ("beyond loopback", lambda s: s["router"].update(ports=["8000:8000"])),
    "no such dependency": (
        "which does not exist",
        lambda s: s["cache"]["depends_on"].update({"etcd-9": {"condition": "service_healthy"}}),
    ),
    "health never checked": ("which has no check", lambda s: s["etcd-1"].pop("healthcheck")),
    "no such target": ("no target routr", lambda s: s["router"]["build"].update(target="routr")),
    "undeclared volume": ("volume hubb", lambda s: s["router"].update(volumes=["hubb:/var/lib/stagemesh"])),
}


@pytest.mark.parametrize("case", BROKEN_FOR_THE_CHECKS)
def test_checks_go_red_on_a_broken_file(case):
    expected, breaks = BROKEN_FOR_THE_CHECKS[case]
    document = copy.deepcopy(compose())
    breaks(document["services"])
    assert any(expected in fault for fault in faults(document)), list(faults(document))
