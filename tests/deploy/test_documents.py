"""README and docs/: what they name must exist."""

import ast
import json
import re
from importlib.util import find_spec

import pytest
from deploy_files import DEPLOY, DOCUMENTS, ROOT, blocks, dockerfile_stages, shell_commands
from test_command_lines import CONFIGS, config_class

from stagemesh.config import flag_name

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_python_blocks_are_python_and_import_what_exists(document):
    for block in blocks(document.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["*"])
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                assert all(find_spec(alias.name.split(".")[0]) for alias in node.names)


def test_bodies_of_requests_are_json(document):
    for command in shell_commands(document.read_text()):
        if command[0] in ("curl", "grpcurl") and "-d" in command:
            assert json.loads(command[command.index("-d") + 1])["model"]


def test_make_targets_exist(document):
    makefile = (ROOT / "Makefile").read_text()
    for command in shell_commands(document.read_text()):
        if "make" in command:
            target = command[command.index("make") + 1]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_paths_exist(document):
    for path in re.findall(r"`((?:deploy|protos|stagemesh|examples|docs)/[\w./-]+)`", document.read_text()):
        assert (ROOT / path).exists(), path


def test_settings_in_tables_exist(document):
    for line in document.read_text().splitlines():
        row = re.match(r"\| (`--[^|]*) \| (all|router|stage|cache|registry) \|", line)
        if not row:
            continue
        flags = re.findall(r"--[\w-]+", row[1])
        for service in CONFIGS if row[2] == "all" else [row[2]]:
            known = {flag_name(name) for name in config_class(service).model_fields}
            assert set(flags) <= known, f"{service} has no {set(flags) - known}"


def test_metrics_exist(document):
    sources = "".join(
        path.read_text() for folder in ("services", "stagemesh") for path in (ROOT / folder).rglob("*.py")
    )
    for line in document.read_text().splitlines():
        if line.startswith("| `stagemesh_"):
            for metric in re.findall(r"`(stagemesh_\w+)`", line):
                assert metric in sources or metric.removesuffix("_total") in sources, metric


def test_image_targets_exist(document):
    targets = dockerfile_stages((DEPLOY / "Dockerfile").read_text())
    for command in shell_commands(document.read_text()):
        if command[:2] == ["docker", "build"] and "--target" in command:
            assert command[command.index("--target") + 1] in targets
