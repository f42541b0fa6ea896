"""What SLURM tells a task, and the job scripts as far as they can be checked without a cluster."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

from fast_electra.runs import slurm

SCRIPTS = sorted((ROOT / "launchers" / "slurm").iterdir())
LONG = [each for each in SCRIPTS if each.suffix == ".sbatch" and each.stem != "benchmark"]
# Task 5 of six on nodes with two, two, one and one, as srun of SLURM 22.05 describes it.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[007-009],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1(x2)",
}


def test_a_task_learns_its_place_from_slurm():
    place = slurm.rendezvous(TASK)
    port = int(place.pop("MASTER_PORT"))
    assert place.pop("PLACE_ON_MACHINE") == "0"
    assert place == {"RANK": "4", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "gpu007"}
    assert 12_000 <= port < 32_000


def test_all_tasks_of_a_step_agree_and_other_jobs_steps_and_restarts_meet_elsewhere():
    first = slurm.rendezvous(TASK)
    second = slurm.rendezvous(TASK | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"})
    assert (second["LOCAL_RANK"], second["LOCAL_SIZE"]) == ("1", "2")
    assert all(first[name] == second[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    others = [{"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}]
    ports = {slurm.rendezvous(TASK | other)["MASTER_PORT"] for other in (*others, {})}
    assert len(ports) == 4


def test_a_step_on_one_node_meets_on_the_loopback_device():
    alone = {"SLURM_STEP_NODELIST": "gpu007", "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0"}
    place = slurm.rendezvous(TASK | alone)
    assert (place["MASTER_ADDR"], place["LOCAL_SIZE"]) == ("127.0.0.1", "8")


def test_what_the_user_sets_stays():
    chosen = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
    assert slurm.rendezvous(TASK | chosen).items() >= chosen.items()


def test_a_job_script_or_a_shell_in_an_allocation_is_no_task():
    script = {name: value for name, value in TASK.items() if "STEP" not in name}
    assert slurm.rendezvous(script) == {}
    assert slurm.rendezvous({}) == {}


@pytest.mark.parametrize(("visible", "index"), [("5", "0"), ("0,1,2,3", "3"), ("", "3")])
def test_a_task_that_sees_one_gpu_of_its_own_takes_that_one(visible, index):
    node = {"SLURM_STEP_NODELIST": "gpu007", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    place = slurm.rendezvous(TASK | node | {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": visible})
    assert (place["LOCAL_RANK"], place["PLACE_ON_MACHINE"]) == (index, "3")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("vm", "vm"),
        ("a,b", "a"),
        ("gpu[007-012,3],login", "gpu007"),
        ("rack[2,4]node[10-12]", "rack2node10"),
        ("gpu-[1-3],x[1-2]", "gpu-1"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert slurm.first_host(nodes) == first


def test_tasks_per_node_in_full():
    assert slurm.tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert slurm.tasks_per_node("8") == [8]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_job_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", LONG, ids=lambda script: script.name)
def test_long_jobs_save_before_their_time_is_up_and_queue_again(script):
    head = script.read_text()
    seconds = 120 if script.name in ("pretrain.sbatch", "sweep.sbatch") else 600
    assert f"#SBATCH --signal=USR1@{seconds}\n" in head
    assert "#SBATCH --requeue\n" in head
    assert "train.sh" in head


def fake_slurm(folder, status, saves):
    """`srun` that writes a file and ends with a status, and `scontrol`, both writing down how they were called.

    Returns the PATH.
    """
    saved = f'sleep 0.05; mkdir -p "$(dirname "{saves}")"; touch "{saves}"' if saves else ""
    for name, does, code in (("srun", saved, status), ("scontrol", "", 0)):
        program = folder / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >>"{folder}/calls"\n{does}\nexit {code}\n')
        program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def job(folder, script, *arguments, status=0, saves="", **variables):
    """Run a job script as SLURM would, in a folder that holds the launchers; returns (status, calls, stderr)."""
    if not (folder / "launchers").exists():
        (folder / "launchers").symlink_to(ROOT / "launchers")
    place = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "job", "SLURM_JOB_NODELIST": "n1", "SLURM_ARRAY_JOB_ID": "9"}
    environment = os.environ | place | variables | {"PATH": fake_slurm(folder, status, saves)}
    command = ["bash", f"launchers/slurm/{script}", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    made = calls.read_text().split("\n") if calls.exists() else []
    calls.unlink(missing_ok=True)
    return done.returncode, made, done.stderr


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (2, False), (137, False)])
def test_only_a_run_told_to_stop_queues_again(tmp_path, status, requeued):
    ended, calls, _ = job(tmp_path, "pretrain.sbatch", "--recipe", "base", status=status)
    assert ended == status
    assert ("scontrol" in calls) == requeued
    assert (calls[-4:-1] == ["scontrol", "requeue", "12"]) == requeued
    assert calls[calls.index("--output") + 1] == "runs/job-12"
    assert "--output=runs/job-12.logs/rank-%t.log" in calls
    assert (tmp_path / "runs" / "job-12.logs").is_dir()


def stopped(folder, *arguments, script="pretrain.sbatch", saves="", status=75):
    """Whether a job that was told to stop queues again."""
    return "scontrol" in job(folder, script, *arguments, status=status, saves=saves)[1]


def test_three_starts_in_a_row_that_save_nothing_end_the_job(tmp_path):
    """As those of a job do whose time limit is within the lead of its --signal: it is signalled in the start-up."""
    counted = tmp_path / "runs" / "job-12.logs" / "stops-without-progress"
    assert [stopped(tmp_path), stopped(tmp_path)] == [True, True]
    assert len(counted.read_text().splitlines()) == 2
    status, calls, error = job(tmp_path, "pretrain.sbatch", status=75)
    assert (status, "scontrol" in calls) == (2, False)
    assert "error: 3 starts in a row were told to stop before they had saved anything new" in error
    assert "raise --time, or lessen the lead" in error and "runs/job-12.logs" in error
    assert not counted.exists()
    assert stopped(tmp_path), "queued again by hand, with the remedy perhaps, it begins to count anew"


@pytest.mark.parametrize("output", ["", "--output work/x", "--output=work/x", "--output runs/y --output work/x"])
@pytest.mark.parametrize(
    ("script", "saves"),
    [
        ("pretrain.sbatch", "checkpoints/step-00000004/manifest.json"),
        ("pretrain_multinode.sbatch", "auxiliary/checkpoints/step-00000004/manifest.json"),
        ("precompute_replacements.sbatch", "shard-00007.bin"),
    ],
)
def test_a_start_that_saved_something_new_begins_the_count_anew(tmp_path, output, script, saves):
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "x").symlink_to(tmp_path / "disk" / "x")
    saves = f"{'work/x' if output else 'runs/job-12'}/{saves}"
    starts = [stopped(tmp_path, *output.split(), script=script, saves=each) for each in ("", "", saves, "", "", "")]
    assert starts == [True, True, True, True, True, False]


def test_what_was_saved_in_a_start_that_slurm_cut_short_counts_too(tmp_path):
    """`scontrol requeue` ends the job script before it can take note."""
    assert [stopped(tmp_path), stopped(tmp_path)] == [True, True]
    saved = tmp_path / "runs" / "job-12" / "checkpoints" / "step-00000004" / "manifest.json"
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert [stopped(tmp_path), stopped(tmp_path), stopped(tmp_path)] == [True, True, True]


@pytest.mark.parametrize("other", ["step-00000004.partial/manifest.json", "step-00000004/mp_rank_00_model_states.pt"])
def test_half_a_checkpoint_and_files_of_an_old_one_are_nothing_new(tmp_path, other):
    old = tmp_path / "runs" / "job-12" / "checkpoints" / "step-00000002" / "manifest.json"
    old.parent.mkdir(parents=True)
    old.touch()
    half = f"runs/job-12/checkpoints/{other}"
    assert [stopped(tmp_path, saves=half) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("status", [0, 2, 137])
def test_another_end_between_begins_the_count_anew(tmp_path, status):
    starts = [stopped(tmp_path, status=each) for each in (75, status, 75, 75, 75)]
    assert starts == [True, False, True, True, False]


@pytest.mark.parametrize("script", LONG, ids=lambda script: script.name)
def test_jobs_run_their_program_under_zero1_and_what_the_user_says_comes_later(tmp_path, script):
    (tmp_path / "sweep.txt").write_text("--seed 1\n")
    first = ["sweep.txt"] if script.stem == "sweep" else []
    chosen = ["--deepspeed", "ds_configs/zero3.json"]
    _, calls, _ = job(tmp_path, script.name, *first, *chosen, SLURM_ARRAY_TASK_ID="1")
    program = "precompute_replacements" if script.stem == "precompute_replacements" else "pretrain"
    begin = calls.index("python")
    assert calls[begin + 1 : begin + 4] == [f"launchers/{program}.py", "--deepspeed", "ds_configs/zero1.json"]
    assert calls[begin + 6 : begin + 8] == chosen
    for name in (f"launchers/{program}.py", "ds_configs/zero1.json", "ds_configs/zero3.json"):
        assert (ROOT / name).is_file()


def test_an_element_of_a_sweep_takes_its_line_as_a_shell_would_read_it(tmp_path):
    lines = "--seed 1\n--seed 2 --output 'a folder/x' --recipe \"base\"\n"
    (tmp_path / "sweep.txt").write_text(lines)
    _, calls, _ = job(tmp_path, "sweep.sbatch", "sweep.txt", "--recipe", "small", SLURM_ARRAY_TASK_ID="2")
    assert calls[-9:-1] == ["--recipe", "small", "--seed", "2", "--output", "a folder/x", "--recipe", "base"]
    assert "runs/job-9/2" in calls


def test_an_element_beyond_the_last_line_is_refused(tmp_path):
    (tmp_path / "sweep.txt").write_text("--seed 1\n")
    status, calls, error = job(tmp_path, "sweep.sbatch", "sweep.txt", SLURM_ARRAY_TASK_ID="2")
    assert (status, calls) == (2, [])
    assert "sweep.txt has no line 2 for element 2; lower --array's end to 1" in error


def test_one_process_for_eight_gpus_is_refused(tmp_path):
    status, calls, error = job(tmp_path, "pretrain.sbatch", SLURM_GPUS_ON_NODE="8", SLURM_NTASKS_PER_NODE="1")
    assert (status, calls) == (2, [])
    assert "add --ntasks-per-node=8 to sbatch" in error


@pytest.mark.skipif(not (shutil.which("sinfo") and os.environ.get("SLURM_CONF")), reason="no SLURM cluster is at hand")
@pytest.mark.parametrize("script", [each for each in SCRIPTS if each.suffix == ".sbatch"], ids=lambda each: each.name)
def test_the_cluster_at_hand_would_take_the_job_scripts(script):
    least = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5"]
    done = subprocess.run(["sbatch", "--test-only", *least, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
