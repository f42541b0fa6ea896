"""What DeepSpeed shares between processes takes no memory after them, however they end."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment

from fast_electra.engine import shared_memory


@pytest.fixture
def segments(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "SEGMENTS", tmp_path)
    return tmp_path


def segment(folder, name, age=3600.0):
    path = folder / name
    path.write_bytes(b"states")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_segments_of_processes_that_are_gone_are_removed_when_they_are_old_enough(segments):
    mine = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_29500"
    old, young = segment(segments, f"{mine}_0"), segment(segments, f"{mine}_1", age=1.0)
    others = segment(segments, f"deepspeed_allreduce_buffer_{os.getuid() + 1}_127.0.0.1_29500_0")
    unrelated = segment(segments, f"torch_{os.getuid()}_0")
    assert shared_memory.release_abandoned() == [old]
    assert sorted(segments.iterdir()) == sorted([young, others, unrelated])


def test_a_segment_that_a_process_has_open_is_left_alone(segments):
    path = segment(segments, f"deepspeed_allreduce_buffer_{os.getuid()}_host_29500_0")
    hold = "import os, sys; os.open(sys.argv[1], os.O_RDWR); print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert shared_memory.release_abandoned() == []
    assert path.exists()
    holder.kill()
    holder.wait()
    assert shared_memory.release_abandoned() == [path]


STARTED = """
import os, signal
from pathlib import Path
import torch
import deepspeed.comm
from fast_electra.engine import parallel

parallel.start()
parallel.barrier()
named = [path.name for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{os.environ['MASTER_PORT']}_*")]
total = torch.ones(1000, dtype=torch.float32) * (parallel.rank() + 1)
torch.ops.deepspeed.inference_all_reduce_(total)
mapped = "deepspeed_allreduce_buffer" in Path("/proc/self/maps").read_text()
print(f"named {named} mapped {mapped} sum {float(total[-1])}\\n", end="", flush=True)
parallel.barrier()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_of_a_killed_run_no_segment_is_left_and_its_processes_still_share_theirs(tmp_path):
    (tmp_path / "started.py").write_text(STARTED)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29875", "started.py"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    said = re.findall(r"named .*", done.stdout)
    assert said == ["named [] mapped True sum 3.0"] * 2, done.stderr[-3000:]
