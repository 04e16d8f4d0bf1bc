"""Law 6 over processes: 2 and 4 of them, over gloo, give the losses of one; see tests/laws/test_devices.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest

from tljax import mesh
from tljax.launch.start import free_port
from tljax.run import cluster

WORKER = Path(__file__).with_name("worker.py")
GRID = [(family, strategy, parallel, 1) for family in ("bert", "vit", "resnet")
        for strategy in ("full", "last_k", "feature_extraction", "bitfit", "lora")
        if (family, strategy) != ("resnet", "lora") for parallel in ("data", "fsdp")]  # fmt: skip
FEW = {2: [("bert", "full", "data", 2), ("bert", "lora", "fsdp", 1), ("resnet", "full", "data", 1),
           ("events-each", "full", "data", 1), ("dann", "full", "data", 1)],
       4: [("bert", "last_k", "fsdp", 1), ("vit", "full", "data", 1), ("resnet", "last_k", "data", 1),
           ("events-item", "last_k", "fsdp", 1)]}  # fmt: skip


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes(processes):
    cases, port = GRID if layouts.EVERY else FEW[processes], free_port()
    told = {cluster.COORDINATOR: f"127.0.0.1:{port}", cluster.PROCESSES: str(processes)}
    command = [sys.executable, str(WORKER), json.dumps(cases)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | told | {cluster.PROCESS: str(rank)})
               for rank in range(processes)]  # fmt: skip
    wanted = [layouts.setup(family, strategy).run(mesh.single(), layouts.batches(family), accumulate)[0]
              for family, strategy, _, accumulate in cases]  # fmt: skip
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes, said
    found = json.loads(said[0].splitlines()[-1])
    for case, ours, theirs in zip(cases, found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=str(case))
