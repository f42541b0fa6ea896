import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fast_electra.kernels import operator_builds
from fast_electra.kernels.operator_builds import announce, prefer_own_ninja, release_abandoned


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "an_operator").mkdir()
    return tmp_path / "an_operator" / "lock"


def test_the_lock_of_a_killed_build_is_removed_when_it_is_old_enough(lock):
    lock.touch()
    start, said = time.monotonic(), []
    release_abandoned(patience=1.0, say=said.append)
    assert time.monotonic() - start > 0.5, "a young lock may be another host's"
    assert [line.split()[0] for line in said] == ["waiting", "removed"]
    assert not lock.exists()


@pytest.mark.parametrize(
    ("kinds", "patience"),
    [
        ({"/": "ext4"}, operator_builds.PATIENCE_HERE),
        ({"/": "ext4", "{folder}": "nfs4"}, operator_builds.PATIENCE),
        ({"{folder}/an_operator": "xfs", "{folder}": "nfs4"}, operator_builds.PATIENCE_HERE),
        ({"/": "ext4", "{folder}/an_oper": "nfs4"}, operator_builds.PATIENCE_HERE),
        ({"/": "a kind made up today"}, operator_builds.PATIENCE),
        ({}, operator_builds.PATIENCE),
    ],
)
def test_a_lock_on_a_disk_of_this_machines_own_is_given_less_time(lock, monkeypatch, kinds, patience):
    """The tests' own starts give up after 240 s: a start that one of them kills must not hold up the others longer."""
    places = {where.format(folder=lock.parent.parent): kind for where, kind in kinds.items()}
    mounts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in places.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert operator_builds.patience_for(lock.parent) == patience
    lock.touch()
    os.utime(lock, (time.time() - patience - 1,) * 2)
    said = []
    release_abandoned(say=said.append)
    assert [line.split()[0] for line in said] == ["removed"]
    assert not lock.exists()


def test_of_two_file_systems_mounted_on_one_folder_the_later_counts(lock, monkeypatch):
    mounts = [SimpleNamespace(mountpoint="/", fstype=kind) for kind in ("rootfs", "ext4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert operator_builds.patience_for(lock.parent) == operator_builds.PATIENCE_HERE


def test_a_build_that_a_start_will_wait_for_is_told_of_once(lock):
    said = []
    announce("an_operator", said.append)
    assert "a minute or two" in said[0]
    (lock.parent / "an_operator.so").touch()
    announce("an_operator", pytest.fail)


def test_the_lock_of_a_build_that_runs_is_left_alone(lock):
    hold = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    os.utime(lock, (0, 0))
    release_abandoned(patience=0.0, say=pytest.fail)
    assert lock.exists()
    holder.kill()
    holder.wait()
    release_abandoned(patience=0.0)
    assert not lock.exists()


def test_a_lock_that_is_given_back_meanwhile_is_no_ones(lock):
    lock.touch()
    remove = f"import os, time; time.sleep(0.5); os.unlink({str(lock)!r})"
    builder = subprocess.Popen([sys.executable, "-c", remove])
    said = []
    release_abandoned(patience=60.0, say=said.append)
    assert [line.split()[0] for line in said] == ["waiting"]
    assert builder.wait() == 0


def test_the_ninja_of_this_python_comes_before_another(tmp_path, monkeypatch):
    """Two versions in turn built DeepSpeed's operator anew at every start."""
    other, own = tmp_path / "usr" / "ninja", tmp_path / "environment" / "ninja"
    for each in (other, own):
        each.parent.mkdir()
        each.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none" / "python"))
    prefer_own_ninja()
    assert Path(shutil.which("ninja")) == other
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    prefer_own_ninja()
    assert Path(shutil.which("ninja")) == own
