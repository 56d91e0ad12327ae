"""Measures this machine on a model's own layers: `python -m stagemesh.services.stage.profile MODEL`.

Loads one layer and then three of them from the middle of the model; what two layers more take is what a layer takes, and
the rest is overhead. Prints an entry for the file that `stagemesh plan --nodes` reads, and keeps the profile for the
stage nodes of this machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stagemesh import checkpoint as checkpoints
from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import StagemeshError
from stagemesh.planning.profile import Profile, default_folder, load, save, shape_of

from .measure import choose_device, free_memory, measure_speed
from .partition.kv import KVPool
from .partition.load import load_partition
from .profile_machine import disk_gbps, hardware
from .profile_passes import ROWS, best_ms

__all__ = ["measure", "span"]

_POOL_BYTES = 512 * 2**20
_LAYERS = 3


def span(found: Checkpoint, layers: int) -> tuple[int, int]:
    """So many layers, or the fewest more that may be cut out of the model, from as near to its middle as there are.

    Neither the first nor the last layer is taken where it can be helped: a first partition looks tokens up.
    """
    ends = [0, *found.cuts, found.layers]
    pairs = [(a, b) for a in ends for b in ends if b - a >= layers]
    if not pairs:
        return 0, found.layers
    middle = found.layers / 2
    return min(
        pairs,
        key=lambda pair: (
            pair[1] - pair[0],
            pair[0] == 0 or pair[1] == found.layers,
            abs(sum(pair) / 2 - middle),
        ),
    )


def measure(
    source: str,
    *,
    revision: str = "",
    dtype: str = "",
    device: str = "cpu",
    fast: bool = True,
    budget_s: float = 1.5,
    say: Callable[[str], None] = lambda line: None,
) -> Profile:
    """The profile of this machine for a model. `budget_s` limits the measuring, not the loading of up to four layers.

    Raises:
        NotFound: there is no such checkpoint.
        CheckpointError: it cannot be used.
    """
    folder = checkpoints.resolve(source, revision)
    found = checkpoints.inspect_source(source, revision)
    times: list[tuple[float, dict[int, float]]] = []
    rows = tuple(count for count in ROWS if count == 1 or found.task != "tensor")
    for layers in (1, _LAYERS):
        first, end = span(found, layers)
        if times and (first, end) == span(found, 1):
            continue
        say(f"layers {first}..{end - 1}")
        model = load_partition(
            folder,
            found,
            task=found.task,
            first=first,
            end=end,
            dtype=dtype,
            device=device,
            locate=_locate(source, folder),
            fast=fast,
        )
        pool = KVPool(_POOL_BYTES, model.kv_layout) if model.generates else None
        # In layers of average size, since that is what the planner counts in.
        size = sum(found.layer_bytes[first:end]) / (sum(found.layer_bytes) / found.layers)
        times.append((size, best_ms(model, pool, rows, budget_s / 2)))
        del model, pool
    shape, machine = shape_of(found, dtype), hardware(device, fast)
    layer_ms, overhead_ms = _apart(times)
    return Profile(
        key=machine.key(shape),
        shape=shape,
        layer_ms=layer_ms,
        overhead_ms=overhead_ms,
        disk_gbps=disk_gbps(folder),
    )


def _locate(source: str, folder: Path) -> Callable[[str], Path]:
    """Finds weight files in the folder, or fetches those that are needed of a hub id."""

    def locate(file: str) -> Path:
        if (folder / file).exists() or checkpoints.is_local(source):
            return folder / file
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source, file, revision=folder.name))

    return locate


def _apart(times: list[tuple[float, dict[int, float]]]) -> tuple[dict[int, float], float]:
    """(layers, rows -> ms of a pass) of two partitions -> ms of a layer, and of the rest of a pass."""
    (few, short), (many, long) = times[0], times[-1]
    rows = sorted(short.keys() & long.keys())
    if len(times) == 1:
        return {count: short[count] / few for count in rows}, 0.0
    layer_ms = {}
    for count in rows:
        more = (long[count] - short[count]) / (many - few)
        # On a busy machine the larger one may come out hardly slower: then nothing is known of the overhead.
        whole = long[count] / many
        layer_ms[count] = more if whole / 2 < more <= whole else whole
    left = min((short[count] - layer_ms[count] * few for count in rows), default=0.0)
    return layer_ms, max(0.0, left)


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="stagemesh profile", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("model", metavar="MODEL", help="local folder or hub id")
    parser.add_argument("--revision", default="", help="hub revision")
    parser.add_argument(
        "--dtype", default="", choices=["", "F32", "BF16", "F16", "F64"], help="dtype to compute in"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="compute threads of torch; 0: its own number")
    parser.add_argument(
        "--no-fast", action="store_true", help="plain torch, as with `stagemesh stage --no-fast`"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="where profiles are kept")
    parser.add_argument("--again", action="store_true", help="measure even if there is a profile")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if not 0 <= args.threads <= 1024:
        parser.error("--threads: between 0 and 1024")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        profile, seconds, kept = _profile(args)
    except StagemeshError as error:
        for line in error.message.splitlines():
            print(f"stagemesh: {line}", file=sys.stderr)
        return 1
    device = choose_device(args.device)
    speed = measure_speed(device)
    entry = {
        "name": hardware(device, not args.no_fast).device_name.replace(" ", "-"),
        "device": device,
        "memory": free_memory(device),
        "ms_per_layer": {rows: round(ms, 5) for rows, ms in profile.layer_ms.items()},
        "overhead_ms": round(profile.overhead_ms, 5),
        "gflops": round(speed.gflops, 1),
        "memory_gbps": round(speed.memory_gbps, 2),
    }
    if args.json:
        print(
            json.dumps(
                {"profile": profile.model_dump(), "node": entry, "cached": kept, "seconds": round(seconds, 3)}
            )
        )
        return 0
    print("nodes:")
    inner = ", ".join(f"{name}: {json.dumps(value).replace(chr(34), '')}" for name, value in entry.items())
    print(f"  - {{{inner}}}")
    print(
        f"# {'kept from before' if kept else f'measured in {seconds:.1f} s'}; disk {profile.disk_gbps:.2f} GB/s"
    )
    return 0


def _profile(args: argparse.Namespace) -> tuple[Profile, float, bool]:
    """The profile, the seconds that it took, and whether it was kept from before."""
    started = time.perf_counter()
    folder = default_folder() if args.data_dir is None else args.data_dir / "profiles"
    device = choose_device(args.device)
    found = checkpoints.inspect_source(args.model, args.revision)
    known = (
        None
        if args.again
        else load(folder, hardware(device, not args.no_fast).key(shape_of(found, args.dtype)))
    )
    if known is not None:
        return known, time.perf_counter() - started, True
    profile = measure(
        args.model,
        revision=args.revision,
        dtype=args.dtype,
        device=device,
        fast=not args.no_fast,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    save(folder, profile)
    return profile, time.perf_counter() - started, False


if __name__ == "__main__":
    sys.exit(main())
