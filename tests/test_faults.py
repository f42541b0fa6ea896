"""What machines do to runs: a second start, a full or read-only disk, folders deleted, processes that die or hang.

Each ends within a bounded time with a message of the process that failed and a status that is not 0, leaves earlier
checkpoints whole, and the same command goes on.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, clean_environment, launch, metrics

from fast_electra import checkpoint, run_state

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


@pytest.mark.slow
def test_a_full_disk_is_named_by_the_process_that_met_it_and_the_run_goes_on_later(tiny_corpus, small_disk):
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
    path, manifest = checkpoint.newest_sound(output / "checkpoints")
    assert manifest["step"] >= 10, path


@pytest.mark.slow
def test_a_checkpoint_folder_that_is_deleted_underneath_is_made_anew_or_named(tiny_corpus, tmp_path):
    output = tmp_path / "run"
    with going(output, tiny_corpus) as (process, log):
        subprocess.run(["rm", "-rf", str(output)], check=True)
        status, said = ended(process, log)
    assert status == 2
    assert str(output) in said.split("error", 1)[1]


@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_named(tiny_corpus, small_disk):
    output = small_disk / "run"
    with going(output, tiny_corpus) as (process, log):
        subprocess.run(["mount", "-o", "remount,ro,size=16m", str(small_disk)], check=False)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0)
        status, said = ended(process, log)
    assert status == 2
    assert "Read-only" in said


@pytest.mark.slow
def test_a_killed_process_takes_the_others_along_and_the_run_goes_on(tiny_corpus, tmp_path):
    output = tmp_path / "run"
    with going(output, tiny_corpus, num_processes=2) as (process, log):
        ranks(process)["1"].kill()
        began = time.monotonic()
        assert process.wait(timeout=120) == 247, log.read_text()[-2000:]
        assert time.monotonic() - began < 100
    assert run_state.read(str(output))["state"] == run_state.RUNNING
    assert not run_state.is_held(str(output))
    assert checkpoint.newest_sound(output / "checkpoints") is not None
    step = json.loads((checkpoint.complete(output / "checkpoints")[-1] / "manifest.json").read_text())["step"]
    launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", f"--run.stop_at_step={step + 1}", num_processes=2)
    assert metrics(output)[-1]["step"] == step + 1


@pytest.mark.slow
def test_a_stuck_process_is_told_of_by_the_one_that_waits(tiny_corpus, tmp_path):
    output = tmp_path / "run"
    with going(output, tiny_corpus, "--run.hang_minutes=0.2", num_processes=2) as (process, log):
        ranks(process)["1"].suspend()
        status, said = ended(process, log, seconds=200)
    assert status == 4
    assert "error (process 0 on " in said
    assert "no progress for 0.2 minutes while training after step " in said
    assert "error (process 1 on " not in said
    assert checkpoint.newest_sound(output / "checkpoints") is not None
