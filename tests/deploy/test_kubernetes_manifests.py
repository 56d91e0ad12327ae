"""The manifests: strict schema validation of every document, and what schemas cannot see."""

import copy
from collections.abc import Callable

import jsonschema
import kubernetes_validate
import pytest
from deploy_checks import NEEDED_PATHS, all_faults, network_faults
from deploy_files import (
    AUTOSCALING,
    BASE,
    KUBERNETES,
    TRACING,
    Document,
    build,
    container_of,
    kustomization,
    load_all,
    of_kind,
    pod_of,
)

VERSIONS = ["1.31", kubernetes_validate.latest_version()]
FOLDERS = [BASE, TRACING, AUTOSCALING]

# The part of a kustomization that is used here; anything else in one is a mistake.
KUSTOMIZATION_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "namespace", "resources"],
    "properties": {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "namespace": {"const": "stagemesh"},
        "resources": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        "patches": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["path"],
                "properties": {"path": {"type": "string"}},
            },
        },
    },
}

# What is merged into another document is a part of one, and valid once it is merged.
PATCHES = {folder / patch["path"] for folder in FOLDERS for patch in kustomization(folder).get("patches", [])}
FILES = sorted(
    path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml" and path not in PATCHES
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_every_document_is_valid(path, version):
    documents = load_all(path)
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomization_lists_exactly_its_files(folder):
    spec = kustomization(folder)
    jsonschema.validate(spec, KUSTOMIZATION_SCHEMA)
    listed = {(folder / name).resolve() for name in spec["resources"]}
    listed |= {(folder / patch["path"]).resolve() for patch in spec.get("patches", [])}
    assert all(path.exists() for path in listed)
    present = {path.resolve() for path in folder.glob("*.yaml")} - {(folder / "kustomization.yaml").resolve()}
    assert present == {path for path in listed if path.is_file()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_built_documents_are_valid_and_hold_together(folder):
    documents = build(folder)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))
    for document in documents:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    assert all_faults(documents) == []


def test_base_has_the_parts_that_it_promises():
    documents = build(BASE)
    kinds = {(d["kind"], d["metadata"]["name"]) for d in documents}
    assert {("StatefulSet", "etcd"), ("StatefulSet", "stage")} <= kinds
    assert {("Deployment", "router"), ("Deployment", "registry"), ("Deployment", "cache")} <= kinds
    assert ("HorizontalPodAutoscaler", "router") in kinds
    (etcd,) = [d for d in of_kind(documents, "StatefulSet") if d["metadata"]["name"] == "etcd"]
    assert etcd["spec"]["replicas"] == 3
    assert etcd["spec"]["podManagementPolicy"] == "Parallel"


def test_services_are_probed_by_native_grpc():
    documents = build(BASE)
    for workload in of_kind(documents, "Deployment", "StatefulSet"):
        if workload["metadata"]["name"] == "etcd":
            continue
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            # The registry's health follows etcd's: a reason to send it nothing, none to kill it.
            kind = (
                "tcpSocket"
                if (workload["metadata"]["name"], probe) == ("registry", "livenessProbe")
                else "grpc"
            )
            assert kind in container_of(workload)[probe], workload["metadata"]["name"]


def test_tracing_overlay_sends_spans_to_the_jaeger_that_it_brings():
    documents = build(TRACING)
    environment = find(documents, "ConfigMap", "stagemesh-env")
    assert environment["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert environment["data"]["STAGEMESH_ETCD"], "the patch must add to the base, not replace it"
    base_environment = find(build(BASE), "ConfigMap", "stagemesh-env")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in base_environment["data"]
    spans = {(source, "jaeger", 4317) for source in ("router", "stage", "cache", "registry")}
    assert list(network_faults(documents, NEEDED_PATHS | spans)) == []


def test_with_autoscaling_the_registry_may_scale_the_stages_and_nothing_else():
    documents = build(AUTOSCALING)
    (role,) = of_kind(documents, "Role")
    assert role["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["statefulsets/scale"],
            "resourceNames": ["stage"],
            "verbs": ["get", "patch"],
        }
    ]
    (binding,) = of_kind(documents, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    accounts = {
        d["metadata"]["name"]: d["automountServiceAccountToken"] for d in of_kind(documents, "ServiceAccount")
    }
    assert [name for name, token in accounts.items() if token] == ["registry"]
    stage = find(documents, "StatefulSet", "stage")
    assert "replicas" not in stage["spec"], "applying again must not undo what the registry decided"
    assert find(documents, "ConfigMap", "registry-env")["data"]["STAGEMESH_NODE_POOL"] == "statefulset/stage"
    assert {d["kind"] for d in of_kind(build(BASE), "Role", "RoleBinding")} == set()


def find(documents: list[Document], kind: str, name: str) -> Document:
    (document,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return document


Mutation = Callable[[list[Document]], object]

BROKEN_FOR_THE_SCHEMA: dict[str, tuple[str, str, Callable[[Document], object]]] = {
    "misspelt field": ("Deployment", "router", lambda d: container_of(d).update(livenesProbe={})),
    "port as text": (
        "StatefulSet",
        "stage",
        lambda d: container_of(d)["readinessProbe"]["grpc"].update(port="8100"),
    ),
    "replicas as text": ("Deployment", "cache", lambda d: d["spec"].update(replicas="one")),
    "no selector": ("StatefulSet", "etcd", lambda d: d["spec"].pop("selector")),
    "limit at the wrong level": (
        "Deployment",
        "cache",
        lambda d: container_of(d).update(limits={"cpu": "1"}),
    ),
    "autoscaler without a target": (
        "HorizontalPodAutoscaler",
        "router",
        lambda d: d["spec"].pop("scaleTargetRef"),
    ),
    "policy port as a list": (
        "NetworkPolicy",
        "stage",
        lambda d: d["spec"]["ingress"][0]["ports"][0].update(port=[8100]),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", BROKEN_FOR_THE_SCHEMA)
def test_schema_goes_red_on_a_broken_manifest(case, version):
    kind, name, breaks = BROKEN_FOR_THE_SCHEMA[case]
    document = copy.deepcopy(find(build(BASE), kind, name))
    kubernetes_validate.validate(document, version, strict=True)
    breaks(document)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


BROKEN_FOR_THE_CHECKS: dict[str, tuple[str, Mutation]] = {
    "service port moved": (
        "Service/cache: port 8004",
        lambda ds: find(ds, "Service", "cache")["spec"]["ports"][0].update(port=8004),
    ),
    "service selects nothing": (
        "Service/router: selects no workload",
        lambda ds: find(ds, "Service", "router")["spec"]["selector"].update({"app.kubernetes.io/name": "x"}),
    ),
    "probe on an undeclared port": (
        "readinessProbe asks port 9999",
        lambda ds: container_of(find(ds, "StatefulSet", "stage"))["readinessProbe"]["grpc"].update(port=9999),
    ),
    "probe gone": (
        "Deployment/registry: no livenessProbe",
        lambda ds: container_of(find(ds, "Deployment", "registry")).pop("livenessProbe"),
    ),
    "root": (
        "may run as root",
        lambda ds: pod_of(find(ds, "Deployment", "router"))["spec"]["securityContext"].pop("runAsNonRoot"),
    ),
    "writable root": (
        "root file system is writable",
        lambda ds: container_of(find(ds, "StatefulSet", "etcd"))["securityContext"].pop(
            "readOnlyRootFilesystem"
        ),
    ),
    "no limits": (
        "resource limits incomplete",
        lambda ds: container_of(find(ds, "Deployment", "cache"))["resources"].pop("limits"),
    ),
    "label gone": (
        "labels missing: ['app.kubernetes.io/version']",
        lambda ds: find(ds, "Service", "etcd")["metadata"]["labels"].pop("app.kubernetes.io/version"),
    ),
    "not headless": (
        "StatefulSet/stage: has no headless service",
        lambda ds: find(ds, "Service", "stage")["spec"].pop("clusterIP"),
    ),
    "budget gone": (
        "StatefulSet/stage: has no disruption budget",
        lambda ds: ds.remove(find(ds, "PodDisruptionBudget", "stage")),
    ),
    "replicas fight the autoscaler": (
        "Deployment/router: sets replicas",
        lambda ds: find(ds, "Deployment", "router")["spec"].update(replicas=2),
    ),
    "no default deny": (
        "not denied by default",
        lambda ds: ds.remove(find(ds, "NetworkPolicy", "default-deny")),
    ),
    "ring cut": (
        "('stage', 'stage', 8100): not let out",
        lambda ds: find(ds, "NetworkPolicy", "stage")["spec"]["egress"].pop(1),
    ),
    "cache shut": (
        "('router', 'cache', 8003): not let in",
        lambda ds: ds.remove(find(ds, "NetworkPolicy", "cache")),
    ),
    "volume without a mount": (
        "volumes ['hub', 'tmp'] but mounts ['hub']",
        lambda ds: container_of(find(ds, "Deployment", "registry"))["volumeMounts"].pop(0),
    ),
}


@pytest.mark.parametrize("case", BROKEN_FOR_THE_CHECKS)
def test_checks_go_red_on_a_broken_manifest(case):
    expected, breaks = BROKEN_FOR_THE_CHECKS[case]
    documents = copy.deepcopy(build(BASE))
    breaks(documents)
    assert any(expected in fault for fault in all_faults(documents)), all_faults(documents)
