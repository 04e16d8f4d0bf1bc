"""Freed memory is used again, in a process of its own, because the setting holds for a whole process."""

import resource
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from tljax.run import memory

if sys.argv[1] == "keep":
    print(memory.keep_freed(), end=" ")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
SIZE = 2**26  # bytes: more than the 32 MiB up to which glibc learns to keep what is freed
PAGES = SIZE // resource.getpagesize()


def run(how: str) -> list[str]:
    command = [sys.executable, "-c", COUNT, how, str(SIZE)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_pages_are_touched_once():
    (without,) = run("leave")
    said, kept = run("keep")
    assert said == "True"
    assert int(without) > 9 * PAGES  # else this test shows nothing
    assert int(kept) < 1.5 * PAGES
