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
size = int(sys.argv[3])

def allocate():
    b"x" * size

if sys.argv[2] == "jax":
    import jax
    double = jax.jit(lambda x: x * 2)
    x = jax.numpy.ones(size, "uint8")

    def allocate():
        double(x).block_until_ready()

    for _ in range(10):  # some results are freed late, so that there are a few blocks in turn
        allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
SIZE = 2**26  # bytes: more than the 32 MiB up to which glibc learns to keep what is freed
PAGES = SIZE // resource.getpagesize()


def run(how: str, what: str) -> list[str]:
    command = [sys.executable, "-c", COUNT, how, what, str(SIZE)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
@pytest.mark.parametrize("what", ["bytes", "jax"])
def test_pages_are_touched_once(what):
    (without,) = run("leave", what)
    said, kept = run("keep", what)
    assert said == "True"
    assert int(without) > 9 * PAGES  # else this test shows nothing
    assert int(kept) < 5 * PAGES  # on a busy machine a block more, now and then; a growing heap would touch 10
