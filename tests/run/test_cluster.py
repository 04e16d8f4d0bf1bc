"""Which processes make up a run, by the environment of every kind of launcher."""

import pytest

from tljax.errors import ConfigError
from tljax.run import cluster
from tljax.run.cluster import Cluster, found

TOLD = {"TLJAX_COORDINATOR": "a:1", "TLJAX_PROCESSES": "4", "TLJAX_PROCESS": "3"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_NUM_TASKS": "4",
         "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
         "SLURM_NODEID": "1"}  # fmt: skip
SLICE = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(("environ", "gpus", "expected"), [
    ({}, 8, None),
    (TOLD, 0, Cluster("launch", "a:1", 4, 3)),
    (TOLD | {"TLJAX_LOCAL_DEVICES": "2,3"}, 8, Cluster("launch", "a:1", 4, 3, (2, 3))),
    ({"TLJAX_COORDINATOR": "a:1", "TLJAX_PROCESSES": "1", "TLJAX_PROCESS": "0"}, 0, None),
    (SLURM, 0, Cluster("Slurm", "gpu03:61447", 4, 3)),
    (SLURM, 8, Cluster("Slurm", "gpu03:61447", 4, 3, (4, 5, 6, 7))),
    (SLURM | {"SLURM_GPUS_PER_TASK": "4"}, 4, Cluster("Slurm", "gpu03:61447", 4, 3)),  # Slurm shows its own alone
    # one task a node: all GPUs of the node, where JAX's own detection takes one
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, 8, Cluster("Slurm", "gpu03:61447", 4, 3)),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, 8, None),
    ({name: value for name, value in SLURM.items() if "STEP" not in name}, 8, None),  # sbatch's own shell
    (SLICE, 0, Cluster("the TPU slice", "t0:8476", 2, 1)),
    (SLICE | {"TPU_WORKER_HOSTNAMES": "localhost"}, 0, None),
])  # fmt: skip
def test_found(environ, gpus, expected):
    assert found(environ, lambda: gpus) == expected


@pytest.mark.parametrize(("change", "words"), [
    ({"TLJAX_PROCESS": ""}, "without TLJAX_PROCESS"),
    ({"TLJAX_PROCESS": "4"}, "0 to 3"),
    ({"TLJAX_PROCESS": "x"}, "a whole number"),
    ({"TLJAX_COORDINATOR": "a"}, "host:port"),
    ({"TLJAX_LOCAL_DEVICES": "0;1"}, "joined by commas"),
])  # fmt: skip
def test_contradictions(change, words):
    with pytest.raises(ConfigError, match=words):
        found(TOLD | change)


@pytest.mark.parametrize(("nodes", "first"), [("a", "a"), ("a,b", "a"), ("gpu[3,5-7]", "gpu3"),
                                              ("n[01-04]-ib", "n01-ib"),
                                              ("rack1-gpu[007-9],x", "rack1-gpu007")])  # fmt: skip
def test_the_first_node(nodes, first):
    assert cluster._first_node(nodes) == first


@pytest.mark.parametrize(("visible", "count"), [("0,1", 2), ("", 0), ("NoDevFiles", 0), ("GPU-abc,GPU-def", 2)])
def test_visible_gpus(visible, count):
    assert len(cluster.visible_gpus({"CUDA_VISIBLE_DEVICES": visible})) == count
