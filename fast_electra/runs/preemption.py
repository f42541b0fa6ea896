"""Preemption: SIGTERM or SIGUSR1 ends a start early, at the next place where nothing is lost.

The handler only takes note; the loop asks after each step. A start-up has nothing to save yet: inside `at_once` the
signal raises `Preempted` where it arrives. Further signals are ignored from the first one on, to the process's end, so
that a scheduler may send as many as it likes. Ctrl-C is taken note of where steps would be lost, inside `ctrl_c_saves`,
and is Python's own elsewhere and when it comes again: who sits before a run can tell it to end at once. Nothing here is
heavier than psutil, so that a launcher installs the handlers before its seconds of imports.

`deepspeed` is two processes above those that train, and a signal to the first ends that one alone. Its end, and that of
the second however it came, is therefore taken for a signal too: no process goes on without its launcher.
"""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

EXIT_STATUS = os.EX_TEMPFAIL  # 75: a temporary failure, the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """Raised in a start-up that was told to stop; uncaught, it ends the process with EXIT_STATUS."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


_requested = False
_raises = False
_installed = False


def install() -> None:
    """From here on the signals are noted. Forked children get the default back: pools end theirs with SIGTERM."""
    global _installed
    _installed = True
    for each in SIGNALS:
        signal.signal(each, _note)
    os.register_at_fork(after_in_child=_forget)
    if "CROSS_RANK" in os.environ:  # as deepspeed's launcher sets it, and no other
        threading.Thread(target=_follow, args=[_launcher()], name="launcher's end", daemon=True).start()


def requested() -> bool:
    """Whether this process was told to stop."""
    return _requested


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, the first signal raises `Preempted` where it arrives; one that came before does so on entering."""
    global _raises
    if _requested:
        raise Preempted
    _raises = True
    try:
        yield
    finally:
        _raises = False


@contextmanager
def compiling() -> Iterator[None]:
    """Inside, a failure after a signal is that signal's doing: sent to all of a process group it ends compilers too."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if _requested:
            raise Preempted from error
        raise


@contextmanager
def ctrl_c_saves() -> Iterator[None]:
    """Inside, the first SIGINT is one of the signals.

    It is left as it is without `install`, as in a notebook, and where somebody has said what becomes of it, as a shell
    does for what it runs in the background.
    """
    if not _installed or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    usual = signal.signal(signal.SIGINT, _note_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _launcher() -> tuple[int, int]:
    """The processes of the launcher, the nearer one first; who has lost its parent has another."""
    parent = os.getppid()
    try:
        return parent, psutil.Process(parent).ppid()
    except psutil.NoSuchProcess:
        return parent, 0


def _follow(launcher: tuple[int, int]) -> None:
    while _launcher() == launcher:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _note(_number: int, _frame: FrameType | None) -> None:
    global _requested
    _requested = True
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if _raises:
        raise Preempted


def _note_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    global _requested
    _requested = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("RANK", "0") == "0":
        by_deepspeed = "in the background, for which its launcher gives it 30 s"
        then = by_deepspeed if "CROSS_RANK" in os.environ else "Ctrl-C once more ends at once, without"
        with suppress(OSError):
            os.write(2, f"\nstopping: the step is finished and saved first; {then}\n".encode())
    for stream in (1, 2):  # a program that reads them, such as `tee`, has had the signal too and ends
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _forget() -> None:
    global _requested, _raises, _installed
    _requested = _raises = _installed = False
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _note_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
