"""The Dockerfile: a target per service, torch in one of them only, nothing as root."""

import re
import tomllib

import pytest
from deploy_files import DEPLOY, ROOT, Stage, dockerfile_stages, lineage

SERVICES = {"router", "cache", "registry", "stage"}
TARGETS = SERVICES | {"cli"}
TEXT = (DEPLOY / "Dockerfile").read_text()


def mentions_torch(stages: dict[str, Stage], target: str) -> bool:
    """Whether anything that an image is made of installs torch, by name or through an extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_torch = {
        name for name, needs in extras.items() if any(need.startswith("torch") for need in needs)
    } | {"all"}
    text = " ".join(words for stage in lineage(stages, target) for _, words in stage.instructions)
    chosen = {extra for group in re.findall(r"\.\[([a-z,]+)\]", text) for extra in group.split(",")}
    return bool(chosen & with_torch) or "torch" in text.lower()


def test_has_a_target_per_service():
    stages = dockerfile_stages(TEXT)
    assert set(stages) >= TARGETS
    for name in SERVICES:
        assert stages[name].exec_form("ENTRYPOINT") == ["python", "-m", f"stagemesh.services.{name}"]
    assert stages["cli"].exec_form("ENTRYPOINT") == ["stagemesh"]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_only_the_stage_image_holds_torch(target):
    assert mentions_torch(dockerfile_stages(TEXT), target) is (target == "stage")


@pytest.mark.parametrize(
    "change", [("'.[cache]'", "'.[cache,stage]'"), ("'.[router]'", "'.[all]'"), ("'.[router]'", "torch")]
)
def test_torch_in_another_image_is_noticed(change):
    stages = dockerfile_stages(TEXT.replace(*change))
    assert mentions_torch(stages, "cache") or mentions_torch(stages, "router")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_installs_the_extra_of_its_service_with_the_pinned_versions(target):
    commands = [
        text
        for stage in lineage(dockerfile_stages(TEXT), target)
        for name, text in stage.instructions
        if name == "RUN"
    ]
    (install,) = [text for text in commands if "--constraint constraints.txt" in text]
    assert install.endswith(" ." if target == "cli" else f" '.[{target}]'")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_runs_as_a_user_without_a_name_in_need_of_a_lookup(target):
    users = [text for name, text in dockerfile_stages(TEXT)[target].instructions if name == "USER"]
    assert users == ["10001:10001"]


def test_torch_is_the_cpu_build_unless_asked_otherwise():
    instructions = dockerfile_stages(TEXT)["build-stage"].instructions
    assert ("ARG", "TORCH_BACKEND=cpu") in instructions
    assert any('--torch-backend "${TORCH_BACKEND}"' in text for name, text in instructions if name == "RUN")


def test_what_is_copied_exists_and_reaches_the_builder():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    for stage in dockerfile_stages(TEXT).values():
        for name, text in stage.instructions:
            words = [word for word in text.split() if not word.startswith("--")]
            if name != "COPY" or "--from=" in text:
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, f"{source} is ignored by the builder"


def test_everything_that_the_install_reads_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for _, text in dockerfile_stages(TEXT)["source"].instructions for word in text.split()}
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders | {project["project"]["readme"], "pyproject.toml", "constraints.txt"} <= copied


def test_wheel_holds_every_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    present = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("stagemesh", "services")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    renamed = {f"stagemesh.{name}" if name.startswith("services") else name for name in present}
    assert set(setuptools["packages"]) == renamed
