"""Blocks of the size of large frames are faulted in once, not once a frame."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from stagemesh.malloc import keep_large_blocks
if "keep" in sys.argv:
    assert keep_large_blocks()


def frames_under_way():
    return [bytes(b"x") * 2**24 for _ in range(4)]


frames_under_way()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    frames_under_way()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*args: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, *args], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_blocks_are_faulted_in_once() -> None:
    # 4 x 4 blocks of 4,096 pages each.
    assert faults() > 4 * 4 * 1000
    assert faults("keep") < 1000


GIVE_BACK = """
import psutil
from stagemesh.malloc import keep_large_blocks, return_free_blocks
assert keep_large_blocks()
blocks = [bytes(b"x") * 2**24 for _ in range(12)]
del blocks
before = psutil.Process().memory_info().rss
return_free_blocks()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_what_is_kept_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_BACK], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 100 * 2**20
