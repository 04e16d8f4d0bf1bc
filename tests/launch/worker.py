"""One of several processes that train the cases of layouts.py together; the first one prints the losses of each."""

import json
import os
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
jax.config.update("jax_platforms", "cpu")

import layouts  # noqa: E402 - tests/ is on the path only now

from tljax import mesh  # noqa: E402
from tljax.run import cluster  # noqa: E402
from tljax.run.processes import Group  # noqa: E402

if __name__ == "__main__":
    joined = cluster.found(os.environ)
    if joined is None:
        raise SystemExit("not one of several processes")
    with Group(joined):
        found = []
        for family, strategy, parallel, accumulate in json.loads(sys.argv[1]):
            layout = mesh.over(jax.devices(), parallel)
            losses, _ = layouts.setup(family, strategy).run(layout, layouts.batches(family), accumulate)
            found.append(losses.tolist())
        if mesh.lead():
            print(json.dumps(found))
