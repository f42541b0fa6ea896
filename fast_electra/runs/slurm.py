"""SLURM's description of a task, as the rendezvous that torch and DeepSpeed read.

`srun` starts one task per process on every node of the job and tells each its place. No other launcher is needed then:
no host file, no pdsh, no ssh. Variable names are those of srun(1), "OUTPUT ENVIRONMENT VARIABLES".
"""

import re
from collections.abc import Mapping

PLACE = "PLACE_ON_MACHINE"  # our own: LOCAL_RANK tells the GPU
_FIRST_PORT, _NUM_PORTS = 12_000, 20_000  # below the ports that Linux hands out by itself


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, PLACE_ON_MACHINE, MASTER_ADDR and MASTER_PORT of this task; empty
    outside of `srun`.

    A job script itself, or a shell in an allocation, is no task of a step: what it starts runs by itself. MASTER_ADDR
    and MASTER_PORT stay as they are where they are set already.
    """
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return {}
    counts = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    local_size = counts[int(environment["SLURM_NODEID"])]
    host = "127.0.0.1" if len(counts) == 1 else first_host(environment["SLURM_STEP_NODELIST"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if _one_gpu_a_task(environment, local_size) else environment["SLURM_LOCALID"],
        "LOCAL_SIZE": str(local_size),
        PLACE: environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or host,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_port(environment)),
    }


def tasks_per_node(text: str) -> list[int]:
    """SLURM's shorthand for the number of tasks on each node, in full: "2(x3),1" is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, nodes = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()  # type: ignore[union-attr]
        counts += [int(tasks)] * int(nodes or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: "gpu[007-012,3],login" is "gpu007"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert first is not None, f"SLURM gave an empty node list: {nodes!r}"
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def _one_gpu_a_task(environment: Mapping[str, str], local_size: int) -> bool:
    """Whether SLURM shows each task only its own GPU (--gpus-per-task), which then is number 0 in all of them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return local_size > 1 and len(visible.split(",")) == 1 and visible != ""


def _port(environment: Mapping[str, str]) -> int:
    """A port that other jobs, other steps and earlier starts of this job on the node hardly share."""
    job, restart, step = (int(environment.get(f"SLURM_{name}", 0)) for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return _FIRST_PORT + ((job * 31 + restart) * 31 + step) % _NUM_PORTS
