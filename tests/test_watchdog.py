"""A process that hangs ends itself and says where; one that was only suspended goes on."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, clean_environment

WATCHED = """
import sys, time
from fast_electra.runs import run_state
from fast_electra.runs.watchdog import Watchdog
run_state.take(sys.argv[1])
watchdog = Watchdog(2 / 60)
watchdog.folder = sys.argv[1]
watchdog.begin("training after step 7")
print("begun", flush=True)
exec(sys.argv[2])
print("went on", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(code):
        command = [sys.executable, "-c", WATCHED, str(tmp_path), code]
        process = subprocess.Popen(
            command,
            env=clean_environment(PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "begun\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_no_progress_ends_the_process_with_place_and_remedy(start, tmp_path):
    _, message = (process := start("time.sleep(100)")).communicate(timeout=60)
    assert process.returncode == 4
    assert "error: no progress for 0.0333 minutes while training after step 7 (in <string>, line 1)" in message
    assert "the same command goes on" in message
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["state"] == "failed"
    assert "no progress for" in state["why"]


def test_a_disk_that_hangs_does_not_keep_it_from_ending(start):
    code = (
        "from fast_electra.runs import watchdog as module; module._LAST_WORDS_SECONDS = 1; "
        "run_state.end = lambda *a: time.sleep(1000); time.sleep(100)"
    )
    process = start(code)
    process.communicate(timeout=60)
    assert process.returncode == 4


def test_progress_and_longer_allowances_are_let_through(start):
    code = (
        "for _ in range(6): time.sleep(0.5); watchdog.begin('training')\nwatchdog.begin('saving', 30.0); time.sleep(3)"
    )
    out, message = (process := start(code)).communicate(timeout=60)
    assert (process.returncode, out) == (0, "went on\n"), message


def test_a_process_suspended_with_its_job_is_not_taken_for_hung(start):
    process = start("time.sleep(0.5); watchdog.begin('training'); watchdog.stop()")
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    out, message = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "went on\n"), message
