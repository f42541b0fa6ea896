"""Whatever a launcher ends by: a message with a way out and a status that says what kind it was."""

import errno
import re
import resource
import subprocess
import sys

import pytest
from conftest import ROOT, clean_environment
from torch._dynamo.exc import InternalTorchDynamoError

from fast_electra.methods.divergence import DivergedError
from fast_electra.runs import failure, preemption, run_state

CASES = {
    "input": (ValueError("seed = -1: give more"), 2, "seed = -1: give more"),
    "numbers": (DivergedError("step 3: broken"), 3, "step 3: broken"),
    "a full disk": (OSError(errno.ENOSPC, "No space left", "run/metrics.jsonl"), 2, "the disk is full .*metrics.jsonl"),
    "a read-only disk": (
        OSError(errno.EROFS, "Read-only", "run"),
        2,
        "the disk cannot be written any more .*bring it back",
    ),
    "a GPU's memory": (RuntimeError("CUDA out of memory. Tried"), 2, r"out of memory \(CUDA.*run.micro_batch_rows"),
    "a lost peer": (
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:42154: Connection reset by peer"),
        2,
        r"another process is gone \(.*reset by peer\): it says why, or was killed; the same command goes on",
    ),
    "a compiler": (
        InternalTorchDynamoError("RuntimeError: Failed to find C compiler. Please specify via CC\n\nSet TORCH"),
        2,
        r"torch could not compile the model \(.*via CC\): --run.compile false .* goes on without",
    ),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    "a defect": (IndexError("7"), None, "IndexError: 7"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_end_has_a_status_and_a_way_out(case):
    error, status, message = CASES[case]
    assert failure.status(error) == status
    assert re.search(message, failure.describe(error))


ENDS = """
import sys
from fast_electra.runs import failure
try:
    exec(sys.argv[1])
except Exception as error:
    failure.leave(error)
"""


def ended(code, **options):
    environment = clean_environment(PYTHONPATH=str(ROOT), WORLD_SIZE="2", RANK="1")
    return subprocess.run(
        [sys.executable, "-c", ENDS, code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


def test_memory_that_the_machine_does_not_give_ends_with_a_message_of_the_process_that_asked():
    done = ended("import torch; torch.ones(1 << 35)", preexec_fn=limit_memory)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error (process 1 on ")
    assert "out of memory" in done.stderr
    assert "lower run.micro_batch_rows" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_keeps_its_traceback():
    done = ended("{}['key']")
    assert done.returncode == 1
    assert "KeyError: 'key'" in done.stderr


@pytest.mark.parametrize(("told", "ends_by"), [(True, preemption.Preempted), (False, InternalTorchDynamoError)])
def test_a_compiler_that_a_signal_to_all_of_a_group_ended_is_that_signals_doing(told, ends_by, tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "_requested", told)
    run_state.take(str(tmp_path))
    with pytest.raises(ends_by), failure.noted(str(tmp_path)):
        raise InternalTorchDynamoError("CppCompileError: C++ compile error")
    assert run_state.read(str(tmp_path)).get("state") == (run_state.PREEMPTED if told else None)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, preemption.Preempted])
def test_what_a_signal_cut_short_in_its_making_says_nothing(kind, monkeypatch):
    class Half:
        def __init__(self):
            raise kind

        def __del__(self):
            raise AttributeError("the rest of it")

    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    try:
        Half()
    except kind as error:
        assert failure.tell(error, failure.PREPARING) == (130 if kind is KeyboardInterrupt else 75)
    assert not said
