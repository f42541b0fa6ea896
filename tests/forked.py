"""A run's processes, forked from one that has imported what all of them import, which takes longer than a tiny run.

A user's command is a new process: conftest's `launched` and the README's commands start it so.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "fast_electra.runs.command_line",
        "fast_electra.pretraining.pretrain",
        "fast_electra.runs.summary",
        "torch._inductor.compile_fx",
    ]
)


def start(command: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> BaseProcess:
    """`python COMMAND` in `folder` and `environment`, a process group of its own; both files are written to."""
    with mock.patch.dict(os.environ, environment):  # of which the imports see what was there when the first was started
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=_run, args=(command, folder, environment, output, errors))
    process.start()
    return process


def _run(command: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> None:
    os.setsid()
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
