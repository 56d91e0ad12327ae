"""Read what deploy/ holds: manifests as kustomize would build them, the compose file, the Dockerfile's stages."""

import copy
import importlib.metadata
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
TRACING = KUBERNETES / "overlays" / "tracing"
AUTOSCALING = KUBERNETES / "overlays" / "autoscaling"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

Document = dict[str, Any]


def load_all(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def kustomization(folder: Path) -> Document:
    (document,) = load_all(folder / "kustomization.yaml")
    return document


def build(folder: Path) -> list[Document]:
    """Every document of a kustomization: its resources, then its merge patches applied by kind and name."""
    spec = kustomization(folder)
    documents: list[Document] = []
    for resource in spec["resources"]:
        path = (folder / resource).resolve()
        documents += build(path) if path.is_dir() else load_all(path)
    for patch in spec.get("patches", []):
        (change,) = load_all(folder / patch["path"])
        (target,) = [
            document
            for document in documents
            if document["kind"] == change["kind"]
            and document["metadata"]["name"] == change["metadata"]["name"]
        ]
        documents[documents.index(target)] = merge(target, change)
    return documents


def merge(target: Document, change: Document) -> Document:
    """Merge mappings, drop nulls, replace everything else: what a strategic merge does where no list is involved."""
    merged = copy.deepcopy(target)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            assert not isinstance(value, list), "lists need kustomize itself"
            merged[key] = value
    return merged


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def workloads(documents: list[Document]) -> list[Document]:
    return of_kind(documents, "Deployment", "StatefulSet")


def pod_of(workload: Document) -> Document:
    return workload["spec"]["template"]


def container_of(workload: Document) -> Document:
    (container,) = pod_of(workload)["spec"]["containers"]
    return container


def environment_of(workload: Document, documents: list[Document]) -> dict[str, str]:
    """The container's environment: config maps first, then its own variables, made-up values for pod fields."""
    container = container_of(workload)
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        (config_map,) = [d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == name]
        environment |= config_map["data"]
    fields = {"metadata.name": f"{workload['metadata']['name']}-0", "status.podIP": "10.1.2.3"}
    for variable in container.get("env", []):
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        else:
            environment[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    return environment


def expand(argument: str, environment: dict[str, str]) -> str:
    """Kubernetes' $(NAME); an unknown name stays as it is, as Kubernetes leaves it."""
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda m: environment.get(m[1], m[0]), argument)


def compose() -> Document:
    (document,) = load_all(DEPLOY / "compose.yaml")
    return document


def compose_schema() -> Document:
    """The Compose Specification's schema, from the `docker-compose` wheel that carries it."""
    schema = importlib.metadata.distribution("docker-compose").locate_file("compose/config/compose_spec.json")
    return json.loads(Path(str(schema)).read_text())


@dataclass
class Stage:
    """One `FROM ... AS name` of a Dockerfile, with its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def exec_form(self, instruction: str) -> list[str]:
        """The last ENTRYPOINT or CMD, which must be in exec (JSON) form."""
        return json.loads([text for name, text in self.instructions if name == instruction][-1])


def dockerfile_stages(text: str) -> dict[str, Stage]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(name, base)
        elif current is not None:
            current.instructions.append((instruction.upper(), " ".join(rest.split())))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage, what it is built FROM and what it copies from, down to the images from elsewhere."""
    found: list[Stage] = []
    todo = [name]
    while todo:
        stage = stages.get(todo.pop())
        if stage is None or stage in found:
            continue
        found.append(stage)
        todo.append(stage.base)
        todo += re.findall(r"--from=(\S+)", " ".join(text for _, text in stage.instructions))
    return found


def shell_words(script: str) -> list[str]:
    """Words of `exec COMMAND ...` as Compose writes it ($$ is a literal $); container facts are made up."""
    script = (
        script.replace("$$", "$").replace("$(hostname -i)", "172.18.0.9").replace("$(hostname)", "c0ffee12")
    )
    words = shlex.split(script)
    assert words[0] == "exec", "the service must replace the shell, or it never sees SIGTERM"
    return words[1:]


def blocks(markdown: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)


def shell_commands(markdown: str) -> list[list[str]]:
    """Words of every command in the `sh` blocks, comments dropped and continued lines joined."""
    lines = "\n".join(blocks(markdown, "sh")).replace("\\\n", " ").splitlines()
    commands = (shlex.split(line.removesuffix("&"), comments=True) for line in lines)
    return [command for command in commands if command]
