"""Told to stop: the step is finished and saved, the status says so, and the same command ends as if never stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT, TINY, launch, launch_command, launched, metrics, start, wait_for
from safetensors.torch import load_file

from fast_electra.runs import preemption

STEPS = 30
LONG = [*TINY, "--objective=mlm", f"--run.steps={STEPS}", "--run.save_every=1000", "--run.evaluate_every=7"]


def weights(output):
    return load_file(output / "export" / "model.safetensors")


def same(output, reference):
    got, expected = weights(output), weights(reference)
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def ranks(process):
    """The processes that train, those of the launcher left out."""
    return [each for each in psutil.Process(process.pid).children(recursive=True) if not each.children()]


def leftovers(output):
    return list(output.rglob("*.partial"))


@pytest.fixture(scope="module")
def reference(tiny_corpus, tmp_path_factory):
    """A run of two processes that was never stopped."""
    output = tmp_path_factory.mktemp("reference") / "run"
    launch(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", num_processes=2)
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.survive)])
def test_a_signal_at_any_rank_stops_all_at_the_same_step_and_nothing_is_lost(
    number, reference, tiny_corpus, tmp_path, record_property
):
    record_property("tried", f"2 processes, {number.name} and SIGTERM at rank 1 in the middle of training")
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*LONG, f"--corpus={tiny_corpus}", f"--output={output}"]
    with launched(*arguments, num_processes=2, log=log) as process:
        wait_for(lambda: in_training(output), process)
        second = next(each for each in ranks(process) if each.environ()["RANK"] == "1")
        second.send_signal(number)
        second.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == preemption.EXIT_STATUS == 75, log.read_text()
    (saved,) = (output / "checkpoints").glob("step-*")
    step = json.loads((saved / "manifest.json").read_text())["step"]
    assert 5 < step < STEPS
    assert f"stopped at step {step}; the same command goes on" in log.read_text()
    launch(*arguments, num_processes=2)
    assert same(output, reference)
    evaluations = [row for row in metrics(reference) if "held_out" in row]
    assert [row for row in metrics(output) if "held_out" in row] == evaluations


def in_training(output):
    return (output / "metrics.jsonl").exists() and len(metrics(output)) > 5


def test_ctrl_c_saves(reference, tiny_corpus, tmp_path):
    """As a terminal sends it: to all processes of the group, of which deepspeed's first ends at once."""
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*LONG, f"--corpus={tiny_corpus}", f"--output={output}"]
    with launched(*arguments, num_processes=2, log=log) as process:
        wait_for(lambda: in_training(output), process)
        training = ranks(process)
        os.killpg(process.pid, signal.SIGINT)
        assert not psutil.wait_procs(training, timeout=60)[1], log.read_text()
    assert log.read_text().count("in the background, for which its launcher gives it 30 s") == 1, log.read_text()
    (saved,) = (output / "checkpoints").glob("step-*")
    step = json.loads((saved / "manifest.json").read_text())["step"]
    assert f"stopped at step {step}; the same command goes on" in log.read_text()
    assert not leftovers(output)
    launch(*arguments, num_processes=2)
    assert same(output, reference)


def moments(output):
    """Where a signal may find a run that trains its own auxiliary model first, in order."""
    auxiliary = output / "auxiliary"
    return {
        "starting": (output / "config.json").exists,
        "training the auxiliary model": (auxiliary / "metrics.jsonl").exists,
        "saving": lambda: list(auxiliary.glob("checkpoints/*.partial")),
        "after the auxiliary model": (auxiliary / "summary.json").exists,
        "exporting": (output / "export.partial").exists,
    }


@pytest.mark.survive
def test_a_signal_at_any_moment_leaves_nothing_half_written(tiny_corpus, tmp_path, record_property):
    record_property("tried", ", ".join(moments(tmp_path)))
    small = [f"--auxiliary_model.{part.removeprefix('--')}" for part in TINY if "encoder" in part]
    short = ["--run.steps=12", "--auxiliary_model.steps=12", "--run.save_every=5"]
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*TINY, *small, *short, f"--corpus={tiny_corpus}"]
    statuses = {}
    for moment, reached in moments(output).items():
        with launched(*arguments, f"--output={output}", log=log) as process:
            wait_for(reached, process)
            for each in ranks(process):
                each.send_signal(signal.SIGTERM)
            statuses[moment] = process.wait(timeout=120)
        assert not leftovers(output), moment
    *stopped, last = statuses.values()
    assert set(stopped) == {75}, (statuses, log.read_text())
    assert last == 0, "an export that has begun ends the run"
    launch(*arguments, f"--output={tmp_path / 'whole'}")
    assert same(output, tmp_path / "whole")
    assert same(output / "auxiliary", tmp_path / "whole" / "auxiliary")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("training", signal.SIGTERM),
        pytest.param("starting", signal.SIGTERM, marks=pytest.mark.survive),
        pytest.param("training", signal.SIGINT, marks=pytest.mark.survive),
    ],
)
def test_a_signal_to_the_command_that_a_container_starts_reaches_those_that_train_alone(
    moment, number, tiny_corpus, tmp_path, record_property
):
    record_property("tried", f"launchers/preemptible.py with 2 processes: {number.name} while {moment}")
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*LONG, f"--corpus={tiny_corpus}", f"--output={output}"]
    inside = ["env", "RANK=0", "WORLD_SIZE=1"]  # as some containers are started
    command = [*inside, sys.executable, "launchers/preemptible.py", *launch_command(*arguments, num_processes=2)]
    with log.open("w") as said, start(command, stdout=said, stderr=said) as process:
        if moment == "training":
            wait_for(lambda: in_training(output), process)
        else:
            wait_for(log.read_text, process)  # of deepspeed's first process
        process.send_signal(number)
        assert process.wait(timeout=120) == preemption.EXIT_STATUS, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "the same command goes on" in log.read_text()
    assert len(list((output / "checkpoints").glob("step-*"))) == (moment == "training")


@pytest.mark.survive
def test_ctrl_c_twice_ends_all_below_the_command_that_a_container_starts(tiny_corpus, tmp_path, record_property):
    record_property("tried", "launchers/preemptible.py with 2 processes: SIGINT, and again before they had saved")
    output, log = tmp_path / "run", tmp_path / "log"
    long = [*LONG, "--run.batch_rows=2048", "--run.steps=100"]  # an update takes some seconds
    command = launch_command(*long, f"--corpus={tiny_corpus}", f"--output={output}", num_processes=2)
    with (
        log.open("w") as said,
        start([sys.executable, "launchers/preemptible.py", *command], stdout=said, stderr=said) as process,
    ):
        wait_for(lambda: (output / "metrics.jsonl").exists() and metrics(output), process)
        below = psutil.Process(process.pid).children(recursive=True)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(timeout=20) == 130, log.read_text()
        assert not psutil.wait_procs(below, timeout=20)[1], log.read_text()
    assert "stopped at step" not in log.read_text()


SIGNALLED = """
import os, signal, sys, time
from fast_electra.runs import preemption
preemption.install()
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGTERM)
assert preemption.requested()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM, "a forked child must end as ever"
try:
    with preemption.at_once():
        print("not reached")
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned up")
"""


def test_further_signals_are_ignored_to_the_end():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (75, "cleaned up\n"), done.stderr


IN_A_PIPE = """
import os, signal
from fast_electra.runs import preemption
preemption.install()
with preemption.ctrl_c_saves():
    os.kill(os.getpid(), signal.SIGINT)
    os.write(1, b"nobody reads this")
    os.write(2, b"nor this")
    os.write(3, b"saved")
"""


def test_ctrl_c_saves_although_it_ends_who_reads_what_is_said(tmp_path):
    """As `deepspeed ... 2>&1 | tee log` in a terminal does, where a write would fail from then on."""
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "saved").open("wb") as saved:
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" 3>&{saved.fileno()}', "-", sys.executable, "-c", IN_A_PIPE],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=writer,
            stderr=writer,
            pass_fds=[saved.fileno()],
            timeout=60,
            check=False,
        )
    os.close(writer)
    assert (done.returncode, (tmp_path / "saved").read_text()) == (0, "saved")


CTRL_C = """
import os, signal
from fast_electra.runs import preemption

def press():
    os.kill(os.getpid(), signal.SIGINT)

def ends(action):
    try:
        action()
    except KeyboardInterrupt:
        return True
    return False

with preemption.ctrl_c_saves():
    assert ends(press) and not preemption.requested(), "not installed: a notebook's own"
preemption.install()
assert ends(press) and not preemption.requested(), "a start-up has nothing to save"
with preemption.ctrl_c_saves():
    child = os.fork()
    if child == 0:
        os._exit(0 if ends(press) else 1)
    assert os.waitpid(child, 0)[1] == 0, "a forked child's is Python's"
    assert not ends(press) and preemption.requested()
    assert ends(press), "once more ends at once"
assert ends(press)
signal.signal(signal.SIGINT, signal.SIG_IGN)
with preemption.ctrl_c_saves():
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "a shell's background job"
"""


def test_ctrl_c_is_noted_once_and_only_where_there_is_something_to_save(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = tmp_path / "said"  # a pipe would be left at the first one
    with said.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", CTRL_C], env=environment, stdout=stream, stderr=stream, timeout=60, check=False
        )
    told = said.read_text().strip()
    assert (done.returncode, told) == (
        0,
        "stopping: the step is finished and saved first; Ctrl-C once more ends at once, without",
    )


AT_ONCE = """
import os, signal
from fast_electra.runs import preemption
preemption.install()
with preemption.at_once():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10**9):
        pass
"""


def test_a_long_stage_of_a_start_up_is_left_at_once():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", AT_ONCE], env=environment, timeout=20, check=False)
    assert done.returncode == 75


def test_a_signal_in_the_building_of_an_operator_stops_the_start(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "operators"))
    output, log = tmp_path / "run", tmp_path / "log"
    with launched(*LONG, f"--corpus={tiny_corpus}", f"--output={output}", log=log) as process:
        wait_for(lambda: list(tmp_path.glob("operators/*/build.ninja")), process)
        compilers = wait_for(lambda: building(process), process)
        for each in compilers:
            each.terminate()
        assert process.wait(timeout=60) == preemption.EXIT_STATUS, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (output / "checkpoints").exists()


def building(process):
    """A rank and the ninja below it, as a signal to the process group reaches both."""
    every = psutil.Process(process.pid).children(recursive=True)
    ninja = [each for each in every if each.name() == "ninja"]
    return [ninja[0].parent(), *ninja] if ninja else []


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--help"], 0, "python launchers/preemptible.py deepspeed --num_gpus 8"),
        ([], 2, "python launchers/preemptible.py deepspeed --num_gpus 8"),
        (["deepsped", "x"], 2, "error: 'deepsped' cannot be started: No such file or directory; give the whole"),
    ],
)
def test_a_wrong_command_is_refused_in_words(given, status, said):
    command = [sys.executable, "launchers/preemptible.py", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
    assert said in done.stdout + done.stderr
