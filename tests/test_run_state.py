"""A run's folder has one worker, whoever dies how, and keeps the reason of an end even on a full disk."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from fast_electra.files.staging import BusyError
from fast_electra.runs import run_state

HOLD = """
import sys, time
from fast_electra.runs import run_state
run_state.take(sys.argv[1])
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_of_the_first(holder, tmp_path):
    with pytest.raises(BusyError) as raised:
        run_state.take(str(tmp_path))
    assert f"process {holder.pid} on {socket.gethostname()} works there since 20" in str(raised.value)
    assert run_state.is_held(str(tmp_path))
    assert run_state.read(str(tmp_path))["state"] == run_state.RUNNING


def test_death_frees_the_folder_and_leaves_the_state_of_a_run(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert not run_state.is_held(str(tmp_path))
    assert run_state.read(str(tmp_path))["pid"] == holder.pid
    run_state.take(str(tmp_path))
    assert run_state.read(str(tmp_path))["pid"] == os.getpid()
    run_state.end(str(tmp_path), run_state.STOPPED)
    assert not run_state.is_held(str(tmp_path))


def test_a_start_waits_for_the_lock_of_another_machine_which_may_have_gone_down(holder, tmp_path, monkeypatch, capsys):
    here = socket.gethostname()
    monkeypatch.setattr(run_state.socket, "gethostname", lambda: "another")
    monkeypatch.setattr(run_state, "_INSTANT", 0.1)
    monkeypatch.setattr(run_state, "_LEASE", 30.0)
    threading.Timer(1.0, holder.kill).start()
    run_state.take(str(tmp_path))
    run_state.end(str(tmp_path), run_state.STOPPED)
    assert f"is locked by {here}: waits 30 s at most" in capsys.readouterr().out


def test_one_that_is_alive_there_is_not_waited_for_longer_than_a_lease(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_state.socket, "gethostname", lambda: "another")
    monkeypatch.setattr(run_state, "_LEASE", 0.5)
    with pytest.raises(BusyError, match=r"works there since"):
        run_state.take(str(tmp_path))


def test_a_forked_child_does_not_keep_it(tmp_path):
    run_state.take(str(tmp_path))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    run_state.end(str(tmp_path), run_state.FINISHED)
    held = run_state.is_held(str(tmp_path))
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not held


def test_the_first_failure_has_the_word_and_a_long_reason_is_cut(tmp_path):
    run_state.take(str(tmp_path))
    run_state.take(str(tmp_path))
    run_state.end(str(tmp_path), run_state.FAILED, "é" * 10_000)
    run_state.end(str(tmp_path), run_state.FAILED, "a peer is gone")
    found = run_state.read(str(tmp_path))
    assert found["state"] == run_state.FAILED
    assert set(found["why"]) == {"é"}
    assert (tmp_path / run_state.NAME).stat().st_size == 4096


def test_a_folder_that_is_gone_keeps_no_note(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run_state.take(str(folder))
    (folder / run_state.NAME).unlink()
    run_state.end(str(folder), run_state.FAILED, "deleted underneath")
    assert list(folder.iterdir()) == []
    assert run_state.read(str(folder)) == {}


def test_a_full_disk_takes_the_reason_of_the_end(small_disk):
    run_state.take(str(small_disk))
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run_state.end(str(small_disk), run_state.FAILED, "no space left")
    assert json.loads((small_disk / run_state.NAME).read_text())["why"] == "no space left"
