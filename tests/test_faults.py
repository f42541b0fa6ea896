"""What machines do to runs: a second start, a full or read-only disk, folders deleted, processes that die or hang.

Each ends within a bounded time with a message of the process that failed and a status that is not 0, leaves earlier
checkpoints whole, and the same command goes on.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, clean_environment, launch, launched, metrics, wait_for

from fast_electra.checkpoints import checkpoint
from fast_electra.runs import run_state

LONG = [*TINY, "--objective=mlm", "--run.steps=400", "--run.save_every=10", "--run.evaluate_every=1000"]


@contextmanager
def going(output, corpus, *arguments, num_processes=1):
    """A run that has made its first checkpoint and goes on; gives the process and a file of what it says."""
    log = Path(corpus).parent / f"{output.parent.name}.log"
    port = 21_000 + os.getpid() % 10_000
    command = ["deepspeed", f"--num_gpus={num_processes}", f"--master_port={port}", "launchers/pretrain.py", *LONG]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, f"--corpus={corpus}", f"--output={output}", *arguments],
            cwd=ROOT,
            env=clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 240
        while not checkpoint.complete(output / "checkpoints"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.05)
        yield process, log
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ranks(process):
    """The processes that train, by rank."""
    leaves = [each for each in psutil.Process(process.pid).children(recursive=True) if not each.children()]
    return {each.environ()["RANK"]: each for each in leaves if "RANK" in each.environ()}


def ended(process, log, seconds=120):
    """The status and what was said."""
    status = process.wait(timeout=seconds)
    said = log.read_text()
    assert "Traceback" not in said, said[-3000:]
    return status, said


def test_a_second_start_in_the_same_folder_is_refused_and_the_first_goes_on(tiny_corpus, tmp_path):
    output = tmp_path / "run"
    with going(output, tiny_corpus) as (first, log):
        second = launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", check=False)
        assert second.returncode == 2
        (rank,) = ranks(first).values()
        assert f"error: output = '{output}': process {rank.pid} on " in second.stderr
        assert first.poll() is None, log.read_text()
        assert run_state.read(str(output))["pid"] == rank.pid


def last_whole_step(output):
    """The step of the newest checkpoint, every byte of which is what its manifest says."""
    return checkpoint.newest_sound(output / "checkpoints")[1]["step"]


@pytest.mark.survive
def test_a_full_disk_is_named_by_the_process_that_met_it_and_the_run_goes_on_later(
    tiny_corpus, small_disk, record_property
):
    record_property("tried", "2 processes on a disk of 16 MiB that fills up in training, then is emptied")
    output, filler = small_disk / "run", small_disk / "filler"
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        status, said = ended(process, log)
    assert status == 2
    assert "error (process 0 on " in said
    assert "No space left" in said or "could not be written" in said
    assert "the same command goes on" in said
    assert "the same command goes on" in run_state.read(str(output))["why"]
    filler.unlink()
    step = last_whole_step(output)
    launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", f"--run.stop_at_step={step + 1}", num_processes=2)
    assert metrics(output)[-1]["step"] == step + 1


@pytest.mark.survive
def test_a_folder_that_is_deleted_underneath_is_named(tiny_corpus, tmp_path, record_property):
    record_property("tried", "rm -rf of the run's folder in training")
    output = tmp_path / "run"
    with going(output, tiny_corpus) as (process, log):
        while output.exists():  # a step may write in the middle of it
            subprocess.run(["rm", "-rf", str(output)], check=False)
        status, said = ended(process, log)
    assert status == 2
    assert str(output) in said.split("error", 1)[1]


def read_only(folder):
    """A mount of the folder over itself that cannot be written; files that are open for writing stay so."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.survive)])
def test_a_disk_that_turns_read_only_is_named(num_processes, tiny_corpus, small_disk, record_property):
    record_property("tried", f"the run's folder turned read-only in the training of {num_processes} processes")
    output = small_disk / "run"
    with going(output, tiny_corpus, num_processes=num_processes) as (process, log):
        read_only(output)
        try:
            status, said = ended(process, log)
            step = last_whole_step(output)
        finally:
            subprocess.run(["umount", "--lazy", str(output)], check=True)
    assert status == 2
    assert "Read-only file system" in said
    assert "the same command goes on" in said
    assert step >= 10


@pytest.mark.survive
def test_a_killed_process_takes_the_others_along_and_the_run_goes_on(tiny_corpus, tmp_path, record_property):
    record_property("tried", "SIGKILL of one of 2 processes in training")
    output = tmp_path / "run"
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        ranks(process)["1"].kill()
        began = time.monotonic()
        status, said = ended(process, log)
        assert status == 247, said[-2000:]
        assert time.monotonic() - began < 100
    state = run_state.read(str(output))
    if state["state"] == run_state.FAILED:  # else the other was ended while it waited in shared memory
        assert "another process is gone" in state["why"]
        assert "error (process 0 on " in said
    assert not run_state.is_held(str(output))
    step = last_whole_step(output)
    launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", f"--run.stop_at_step={step + 1}", num_processes=2)
    assert metrics(output)[-1]["step"] == step + 1


@pytest.mark.survive
def test_a_stuck_process_is_told_of_by_the_one_that_waits(tiny_corpus, tmp_path, record_property):
    record_property("tried", "SIGSTOP of one of 2 processes in training, run.hang_minutes = 0.5")
    output = tmp_path / "run"
    with going(output, tiny_corpus, "--run.hang_minutes=0.5", num_processes=2) as (process, log):
        ranks(process)["1"].suspend()
        status, said = ended(process, log, seconds=200)
    assert status == 4
    assert "error (process 0 on " in said
    assert "no progress for 0.5 minutes while training after step " in said
    assert "error (process 1 on " not in said
    assert last_whole_step(output) >= 10


@pytest.mark.survive
def test_a_process_that_gets_no_more_memory_says_so(tiny_corpus, tmp_path, monkeypatch, record_property):
    record_property("tried", "one of 2 processes in training is given no more memory")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back, and has to be asked for again
    output = tmp_path / "run"
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        second = ranks(process)["1"]
        second.rlimit(psutil.RLIMIT_AS, (second.memory_info().vms // 2,) * 2)
        status, said = ended(process, log)
    assert status == 2
    assert "error (process 1 on " in said
    assert "out of memory" in said
    assert "lower run.micro_batch_rows" in said
    assert last_whole_step(output) >= 10


STARTING = ["joining the other processes", "reading and verifying the corpora", "building the model"]


@pytest.mark.survive
def test_a_process_that_is_stuck_in_its_start_up_is_told_of_too(tiny_corpus, tmp_path, record_property):
    record_property("tried", "SIGSTOP of one of 2 processes in the start-up, run.hang_minutes = 0.5")
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*LONG, f"--corpus={tiny_corpus}", f"--output={output}", "--run.hang_minutes=0.5"]
    with launched(*arguments, num_processes=2, log=log) as process:
        wait_for((output / "config.json").exists, process)
        ranks(process)["1"].suspend()
        status, said = ended(process, log, seconds=200)
    assert status == 4
    (stage,) = re.findall("error .process 0 on .*no progress for 0.5 minutes while (.*?) [(]in ", said)
    assert stage in STARTING
    launch(*arguments, "--run.hang_minutes=20", "--run.stop_at_step=1", num_processes=2)


def test_a_process_that_never_joins_is_not_waited_for_long(tiny_corpus, tmp_path):
    output = tmp_path / "run"
    place = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(21_000 + os.getpid() % 10_000)}
    command = [sys.executable, "launchers/pretrain.py", *LONG, f"--corpus={tiny_corpus}", f"--output={output}"]
    done = subprocess.run(
        [*command, "--run.hang_minutes=0.05"],
        cwd=ROOT,
        env=clean_environment(DS_ACCELERATOR="cpu") | place | meeting,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4
    assert "no progress for 0.05 minutes while joining the other processes" in done.stderr
    assert not output.exists()


def launchers(process):
    """The two processes of `deepspeed`: the first, and the one that starts those that train."""
    first = psutil.Process(process.pid)
    (second,) = first.children()
    return first, second


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.survive)])
def test_the_end_of_the_launcher_is_taken_for_a_signal(name, tiny_corpus, tmp_path, record_property):
    record_property("tried", f"{name} at the first process of `deepspeed`, 2 processes training")
    output, number = tmp_path / "run", getattr(signal, name)
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        training = list(ranks(process).values())
        _, second = launchers(process)
        process.send_signal(number)
        assert process.wait(timeout=10) == -number
        psutil.wait_procs([*training, second], timeout=90)
        assert not any(each.is_running() for each in [*training, second]), log.read_text()
        said = log.read_text()
    assert "Traceback" not in said
    step = last_whole_step(output)
    assert f"stopped at step {step}; the same command goes on" in said
    assert step % 10 or step == metrics(output)[-1]["step"]
    assert run_state.read(str(output))["state"] == run_state.PREEMPTED


@pytest.mark.survive
def test_a_signal_to_the_second_process_of_the_launcher_saves_too(tiny_corpus, tmp_path, record_property):
    record_property("tried", "SIGTERM at the second process of `deepspeed`, 2 processes training")
    output = tmp_path / "run"
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        launchers(process)[1].terminate()
        status, said = ended(process, log)
    assert status == 1
    assert f"stopped at step {last_whole_step(output)}; the same command goes on" in said
    assert run_state.read(str(output))["state"] == run_state.PREEMPTED
