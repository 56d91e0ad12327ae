"""Rules that schemas cannot express. Each check returns its faults, one line each, so that tests can see it go red."""

from collections.abc import Iterable, Iterator

from deploy_files import Document, container_of, of_kind, pod_of, workloads

LABELS = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
}


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def labels_of(workload: Document) -> dict[str, str]:
    return pod_of(workload)["metadata"]["labels"]


def ports_of(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}


def label_faults(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "Namespace":
            continue
        missing = LABELS - set(document["metadata"].get("labels", {}))
        if missing:
            yield f"{name_of(document)}: labels missing: {sorted(missing)}"
    for workload in workloads(documents):
        if missing := LABELS - set(labels_of(workload)):
            yield f"{name_of(workload)}: pod labels missing: {sorted(missing)}"
        if not matches(workload["spec"]["selector"]["matchLabels"], labels_of(workload)):
            yield f"{name_of(workload)}: selector does not match its own pods"


def trusted(documents: list[Document]) -> set[str]:
    """Service accounts that a role is given to: only these need a token."""
    bindings = of_kind(documents, "RoleBinding")
    return {subject["name"] for binding in bindings for subject in binding["subjects"]}


def selector_faults(documents: list[Document]) -> Iterator[str]:
    """Services, budgets and policies that select no pod; stateful sets without their service; workloads alone."""
    every_workload = workloads(documents)
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = document["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        selector = selector.get("matchLabels", selector)
        selected = [w for w in every_workload if matches(selector, labels_of(w))]
        # The command line runs in pods that people start by hand.
        if not selected and selector.get("app.kubernetes.io/name") != "cli":
            yield f"{name_of(document)}: selects no workload"
        if document["kind"] != "NetworkPolicy" and len(selected) > 1:
            yield f"{name_of(document)}: selects several workloads"
    services = {d["metadata"]["name"]: d for d in of_kind(documents, "Service")}
    accounts = {d["metadata"]["name"]: d for d in of_kind(documents, "ServiceAccount")}
    budgets = {d["metadata"]["name"] for d in of_kind(documents, "PodDisruptionBudget")}
    for workload in every_workload:
        name = workload["metadata"]["name"]
        account = accounts.get(pod_of(workload)["spec"].get("serviceAccountName", ""))
        token = name in trusted(documents)
        if account is None or account.get("automountServiceAccountToken") is not token:
            yield f"{name_of(workload)}: needs a service account of its own without a token"
        if labels_of(workload)["app.kubernetes.io/component"] != "tracing" and name not in budgets:
            yield f"{name_of(workload)}: has no disruption budget"
        if workload["kind"] == "StatefulSet":
            service = services.get(workload["spec"]["serviceName"])
            if service is None or service["spec"].get("clusterIP") != "None":
                yield f"{name_of(workload)}: has no headless service"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        found = [
            w
            for w in every_workload
            if (w["kind"], w["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        if not found:
            yield f"{name_of(scaler)}: scales nothing"
        for workload in found:
            if "replicas" in workload["spec"]:
                yield f"{name_of(workload)}: sets replicas, which its autoscaler owns"
            if "cpu" not in container_of(workload)["resources"].get("requests", {}):
                yield f"{name_of(workload)}: its autoscaler needs a CPU request"


def port_faults(documents: list[Document]) -> Iterator[str]:
    """Service ports, probes and policies against the ports that the containers declare."""
    for service in of_kind(documents, "Service"):
        for workload in workloads(documents):
            if not matches(service["spec"]["selector"], labels_of(workload)):
                continue
            for port in service["spec"]["ports"]:
                declared = ports_of(workload).get(port["targetPort"])
                if declared != port["port"]:
                    yield f"{name_of(service)}: port {port['port']} goes to {port['targetPort']!r} = {declared}"
    for workload in workloads(documents):
        declared = ports_of(workload)
        container = container_of(workload)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe not in container:
                if probe != "startupProbe":
                    yield f"{name_of(workload)}: no {probe}"
                continue
            for kind in ("grpc", "httpGet", "tcpSocket"):
                port = container[probe].get(kind, {}).get("port")
                if port is not None and port not in declared and port not in declared.values():
                    yield f"{name_of(workload)}: {probe} asks port {port}, which is not declared"


def security_faults(documents: list[Document]) -> Iterator[str]:
    for workload in workloads(documents):
        pod, container, name = pod_of(workload)["spec"], container_of(workload), name_of(workload)
        context, own = pod.get("securityContext", {}), container.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
            yield f"{name}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: may escalate"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: its root file system is writable"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name}: keeps capabilities"
        token = pod.get("serviceAccountName", "") in trusted(documents)
        if pod.get("automountServiceAccountToken") is not token:
            yield f"{name}: mounts a token"
        for what in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(container.get("resources", {}).get(what, {})):
                yield f"{name}: resource {what} incomplete"
        volumes = {v["name"] for v in pod.get("volumes", [])}
        volumes |= {v["metadata"]["name"] for v in workload["spec"].get("volumeClaimTemplates", [])}
        mounted = {m["name"] for m in container.get("volumeMounts", [])}
        if volumes != mounted:
            yield f"{name}: volumes {sorted(volumes)} but mounts {sorted(mounted)}"


# (from, to, port): what a request, a lease and a deployment need.
NEEDED_PATHS = {
    *((service, "etcd", 2379) for service in ("registry", "cache", "router", "stage")),
    ("etcd", "etcd", 2380),
    ("router", "cache", 8003),
    ("router", "stage", 8100),
    ("stage", "stage", 8100),
    ("stage", "registry", 8002),
    ("router", "registry", 8002),
    ("cli", "registry", 8002),
    ("cli", "router", 8000),
    ("cli", "router", 8001),
}


def allowed(documents: list[Document], direction: str) -> set[tuple[str, str, int]]:
    """(from, to, port) that policies allow in one direction, "Ingress" or "Egress", between named parts."""
    pods = {w["metadata"]["name"]: labels_of(w) for w in workloads(documents)}
    pods["cli"] = {"app.kubernetes.io/name": "cli", "app.kubernetes.io/part-of": "stagemesh"}

    def names(selector: Document) -> list[str]:
        return [name for name, labels in pods.items() if matches(selector.get("matchLabels", {}), labels)]

    def peers(rule: Document) -> Iterable[str]:
        listed = rule.get("from" if direction == "Ingress" else "to")
        if listed is None:
            return list(pods)
        return [name for peer in listed if "podSelector" in peer for name in names(peer["podSelector"])]

    paths = set()
    for policy in of_kind(documents, "NetworkPolicy"):
        spec = policy["spec"]
        for rule in spec.get(direction.lower(), []):
            for here in names(spec["podSelector"]):
                for there in peers(rule):
                    ends = (there, here) if direction == "Ingress" else (here, there)
                    paths |= {(*ends, port["port"]) for port in rule["ports"]}
    return paths


def network_faults(
    documents: list[Document], needed: set[tuple[str, str, int]] = NEEDED_PATHS
) -> Iterator[str]:
    denied = [
        policy
        for policy in of_kind(documents, "NetworkPolicy")
        if set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
    ]
    covered = [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in denied]
    for workload in workloads(documents):
        if not any(matches(selector, labels_of(workload)) for selector in covered):
            yield f"{name_of(workload)}: not denied by default"
    into, out = allowed(documents, "Ingress"), allowed(documents, "Egress")
    declared = {w["metadata"]["name"]: set(ports_of(w).values()) for w in workloads(documents)}
    for path in sorted(needed):
        if path not in into:
            yield f"{path}: not let in"
        if path not in out:
            yield f"{path}: not let out"
    for path in sorted(out - into):
        yield f"{path}: let out but not in"
    for source, target, port in sorted(out & into):
        if target in declared and port not in declared[target]:
            yield f"{(source, target, port)}: nothing listens there"


def all_faults(documents: list[Document]) -> list[str]:
    return [
        *label_faults(documents),
        *selector_faults(documents),
        *port_faults(documents),
        *security_faults(documents),
        *network_faults(documents),
    ]
