"""Generate the gRPC code from `protos/`; with --check, say whether the committed code is up to date.

The own API lands in `stagemesh/v1/`, the Open Inference Protocol in `stagemesh/oip/` (its file is mapped
there, so that the wheel's only top-level name stays `stagemesh`).
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stagemesh/v1", "stagemesh/oip")


def generate(out: Path) -> None:
    """Write the generated packages under `out`."""
    sources = [f"stagemesh/v1/{path.name}" for path in sorted((ROOT / "protos/stagemesh/v1").glob("*.proto"))]
    sources.append("stagemesh/oip/open_inference.proto")
    arguments = [
        "protoc",
        f"-Istagemesh/oip={ROOT}/protos/inference",
        f"-I{ROOT}/protos",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def main() -> int:
    """Return 0 when the generated code is, or was made, up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [
            f"{package}/{made.name}"
            for package in PACKAGES
            for made in sorted((Path(folder) / package).iterdir())
            if not (ROOT / package / made.name).exists()
            or not filecmp.cmp(made, ROOT / package / made.name, shallow=False)
        ]
    if stale:
        print("generated code differs from protos/ (run `make protos`):", *stale, sep="\n  ", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
