"""The job scripts on a real SLURM: a controller and two node daemons, each in a network of its own (cluster.sh)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, clean_environment, launch, metrics
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
STEPS = 40
# The stage by name: the reference is started without a job script.
LONG = [
    *TINY,
    "--deepspeed=ds_configs/zero1.json",
    "--objective=mlm",
    f"--run.steps={STEPS}",
    "--run.save_every=1000",
    "--run.evaluate_every=1000",
]
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")


class Cluster:
    """A running cluster, and a folder with the launchers from which jobs are submitted."""

    def __init__(self, settings: Path, checkout: Path) -> None:
        self.checkout = checkout
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"SLURM_CONF": str(settings), "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment = clean_environment(**variables, DS_ACCELERATOR="cpu")

    def run(self, *command: str) -> str:
        """What a SLURM command prints; fails when it does."""
        done = subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: str, *arguments: str, name: str, options: tuple[str, ...] = ()) -> str:
        """Submit a job script under a name, which its folder in runs/ begins with; returns the job's number."""
        small = ("--cpus-per-task=1", f"--job-name={name}", "--time=20", *options)
        return self.run("sbatch", "--parsable", *small, f"launchers/slurm/{script}", *arguments).strip()

    def state(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", job, "--oneliner")))

    def until(self, job: str, reached, timeout: float = 480):
        """Wait until `reached()` is true, and return it; fails when the job ends before, or time is up."""
        end = time.monotonic() + timeout
        while not (found := reached()):
            state = self.state(job)["JobState"]
            assert state not in ENDED, f"{state}\n{self.logs(job)}"
            assert time.monotonic() < end, f"{state}, waited in vain\n{self.logs(job)}"
            time.sleep(0.2)
        return found

    def finish(self, job: str) -> dict[str, str]:
        """Wait for the job's end and return its state, which must be good."""
        end = time.monotonic() + 480
        while (state := self.state(job))["JobState"] not in ENDED and time.monotonic() < end:
            time.sleep(0.2)
        assert state["JobState"] == "COMPLETED", self.logs(job)
        return state

    def logs(self, job: str) -> str:
        """The ends of the logs of a job and of its processes."""
        patterns = (f"*-{job}.log", f"runs/*-{job.replace('_', '/')}.logs/*.log")
        paths = [path for pattern in patterns for path in sorted(self.checkout.glob(pattern))]
        return "\n".join(f"{path}:\n{path.read_text()[-4000:]}" for path in paths)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster; skips where it cannot be."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: `make slurm` installs Debian's slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and slurmd")
    if subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    folder, checkout = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("checkout")
    for name in ("launchers", "ds_configs", "benchmarks", "fast_electra"):
        (checkout / name).symlink_to(ROOT / name)
    script = subprocess.Popen([ROOT / "tests" / "slurm" / "cluster.sh", folder], stdout=subprocess.PIPE, text=True)
    try:
        assert script.stdout.readline() == "ready\n", "\n".join(each.read_text() for each in folder.glob("log/*"))
        yield Cluster(folder / "slurm.conf", checkout)
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(timeout=60)


@pytest.fixture(scope="module")
def reference(tiny_corpus, tmp_path_factory):
    """The run of two processes that was never stopped, started by the DeepSpeed launcher and no SLURM."""
    output = tmp_path_factory.mktemp("reference") / "run"
    launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", num_processes=2)
    return output


def weights(output):
    return load_file(output / "export" / "model.safetensors")


def same(output, other):
    got, expected = weights(output), weights(other)
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def steps(output):
    """The updates that were logged so far."""
    path = output / "metrics.jsonl"
    return [row["step"] for row in metrics(output) if "loss" in row] if path.exists() else []


def test_the_cluster_would_take_the_job_scripts(cluster):
    for script in (ROOT / "launchers" / "slurm").glob("*.sbatch"):
        cluster.run("sbatch", "--test-only", "--cpus-per-task=1", str(script))


def test_hosts_are_named_in_slurms_order(cluster):
    from fast_electra.runs import slurm

    for nodes in ("gpu[007-012,3],login", "rack[2,4]node[10-12]", "gpu-[1-3],x[1-2]", "b"):
        assert slurm.first_host(nodes) == cluster.run("scontrol", "show", "hostnames", nodes).split()[0]


def test_a_job_requeued_in_the_middle_ends_with_the_same_weights(cluster, reference, tiny_corpus):
    two = ("--ntasks-per-node=2",)
    job = cluster.submit("pretrain.sbatch", *LONG, f"--corpus={tiny_corpus}", name="requeued", options=two)
    output = cluster.checkout / "runs" / f"requeued-{job}"
    cluster.until(job, lambda: len(steps(output)) > 5)
    cluster.run("scontrol", "requeue", job)
    cluster.until(job, lambda: cluster.state(job)["Restarts"] == "1")
    state = cluster.finish(job)
    assert state["Restarts"] == "1"
    assert same(output, reference)
    logs = cluster.checkout / "runs" / f"requeued-{job}.logs"
    assert sorted(path.name for path in logs.iterdir()) == ["rank-0.log", "rank-1.log"]


def test_a_job_told_to_stop_saves_queues_again_and_ends_with_the_same_weights(cluster, reference, tiny_corpus):
    two = ("--ntasks-per-node=2",)
    job = cluster.submit("pretrain.sbatch", *LONG, f"--corpus={tiny_corpus}", name="told", options=two)
    output = cluster.checkout / "runs" / f"told-{job}"
    cluster.until(job, lambda: len(steps(output)) > 5)
    cluster.run("scancel", "--signal=USR1", job)
    state = cluster.finish(job)
    assert state["Restarts"] == "1"
    assert same(output, reference)
    saved = re.search(r"stopped at step (\d+); the same command goes on", cluster.logs(job))
    assert 5 < int(saved[1]) < STEPS
    assert "ended with status 75" in cluster.logs(job)


def test_a_job_told_to_stop_in_each_start_up_ends_after_the_third(cluster, tiny_corpus):
    """As one whose time limit is within the lead of its --signal, but at a known moment."""
    job = cluster.submit("pretrain.sbatch", *LONG, f"--corpus={tiny_corpus}", name="early")
    log = cluster.checkout / f"early-{job}.log"
    for start in range(3):
        cluster.until(job, lambda text=f"start {start} on": log.exists() and text in log.read_text())
        time.sleep(2.0)  # python has begun, and has seconds of start-up before it
        cluster.run("scancel", "--signal=USR1", job)
    end = time.monotonic() + 60
    while (state := cluster.state(job))["JobState"] not in ENDED and time.monotonic() < end:
        time.sleep(0.2)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "2"), cluster.logs(job)
    assert log.read_text().count("ended with status 75") == 3
    assert "told to stop before they had saved anything new" in log.read_text()


def test_near_its_time_limit_a_job_saves_queues_again_and_goes_on(cluster, tiny_corpus):
    endless = [*TINY, "--objective=mlm", "--run.steps=1000000", "--run.save_every=1000000"]
    limit = ("--time=4", "--signal=USR1@60")
    job = cluster.submit("pretrain.sbatch", *endless, f"--corpus={tiny_corpus}", name="limit", options=limit)
    output = cluster.checkout / "runs" / f"limit-{job}"
    cluster.until(job, lambda: cluster.state(job)["Restarts"] == "1")
    (saved,) = (output / "checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    cluster.until(job, lambda: steps(output)[-1] > step)
    cluster.run("scancel", job)
    logged = steps(output)  # once: it may not have ended yet
    assert logged == list(range(1, logged[-1] + 1)), "it went on where it had saved"


def test_two_hosts_train_what_one_trains(cluster, reference, tiny_corpus):
    job = cluster.submit("pretrain_multinode.sbatch", *LONG, f"--corpus={tiny_corpus}", name="hosts")
    state = cluster.finish(job)
    assert state["NodeList"] == "fe-node[1-2]"
    assert same(cluster.checkout / "runs" / f"hosts-{job}", reference)


def test_deepspeeds_own_launcher_starts_the_tasks_over_srun(cluster, tiny_corpus):
    (cluster.checkout / "hosts").write_text("fe-node1 slots=1\nfe-node2 slots=1\n")
    tasks = "--nodes=2 --ntasks-per-node=1"
    arguments = " ".join([*LONG, f"--corpus={tiny_corpus}", "--output=runs/deepspeed", "--run.steps=2"])
    command = (
        f"deepspeed --launcher slurm --hostfile hosts --no_ssh_check --master_addr fe-node1 --launcher_args '{tasks}' "
        f"launchers/pretrain.py {arguments}"
    )
    job = cluster.run("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--wrap", command).strip()
    cluster.finish(job)
    assert (cluster.checkout / "runs" / "deepspeed" / "summary.json").exists()


def test_each_element_of_a_sweep_trains_its_own_line(cluster, tiny_corpus):
    (cluster.checkout / "sweep.txt").write_text("--seed 1\n--seed 2 --optimizer.peak_learning_rate 1e-4\n")
    common = [*TINY, "--objective=mlm", "--run.steps=2", f"--corpus={tiny_corpus}"]
    array = ("--array=1-2",)
    job = cluster.submit("sweep.sbatch", "sweep.txt", *common, name="sweep", options=array)
    for element in ("1", "2"):
        cluster.finish(f"{job}_{element}")
    first, second = (cluster.checkout / "runs" / f"sweep-{job}" / element for element in ("1", "2"))
    assert not same(first, second)
    assert metrics(second)[0]["learning_rate"] < metrics(first)[0]["learning_rate"]


def test_the_benchmark_measures(cluster):
    arguments = ["demo/frozen/32/512/masked/2", "demo/joint_shallow/32/512/masked/2", "--turns=2", "--steps=1"]
    job = cluster.submit("benchmark.sbatch", *arguments, name="bench")
    rows = cluster.checkout / "runs" / f"bench-{job}" / "measured.jsonl"
    cluster.until(job, lambda: rows.exists() and len(rows.read_text().splitlines()) == 2)
    cluster.run("scancel", job)  # the page takes minutes, and test_benchmarks.py has it
