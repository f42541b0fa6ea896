"""A thread that ends its process when the run makes no progress: nothing else ends a wait for a process that hangs.

A dead process is noticed by the launcher, one that is merely stuck by nobody: gloo and NCCL give up after as long as
they are told to wait, DeepSpeed's all-reduce through shared memory on a CPU never does. Every process watches itself;
the one that hangs is the one that says nothing. A process that was suspended and woken with its whole job is not hung:
the time in which the thread could not run either does not count.

Each stage of a start-up is given the same minutes as an update, and more where it reads a whole corpus or checkpoint;
the group of processes itself waits longer than any stage may take (`patience_minutes`), so that it is this thread that
speaks.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path

from fast_electra.runs import failure, run_state

LONG = 4.0  # what reads or writes all there is, evaluation and export may take so many times as long as an update
_DAY = 24 * 60.0
_LAST_WORDS_SECONDS = 30.0


def patience_minutes(hang_minutes: float) -> float:
    """How long processes wait for each other at the utmost: longer than anything that is watched may take."""
    return 2 * LONG * hang_minutes or _DAY


class Watchdog:
    """Watches this process; `minutes` 0 for never. The end is noted in the run's `folder`, once there is one."""

    def __init__(self, minutes: float) -> None:
        self.folder, self.seconds = "", minutes * 60
        self._doing, self._allowed, self._since = "", self.seconds, time.monotonic()
        self._stopped: threading.Event | None = None
        self._main = threading.main_thread().ident

    def begin(self, doing: str, allowance: float = 1.0) -> None:
        """From now on the process does `doing`, within `allowance` times the minutes; the first call begins."""
        self._doing, self._allowed, self._since = doing, self.seconds * allowance, time.monotonic()
        if self.seconds and self._stopped is None:
            self._stopped = threading.Event()
            threading.Thread(target=self._watch, args=[self._stopped], name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer, until something is begun again."""
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None

    def _watch(self, stopped: threading.Event) -> None:
        tick = min(1.0, self.seconds / 8)
        before = time.monotonic()
        while not stopped.wait(tick):
            now = time.monotonic()
            late = now - before - tick
            if late > tick:
                self._since += late
            before = now
            if now - self._since > self._allowed:
                self._end()

    def _end(self) -> None:
        late = threading.Timer(_LAST_WORDS_SECONDS, os._exit, [failure.HUNG])
        late.daemon = True
        late.start()  # what hangs may be the disk or the stream that is written to here
        frame = sys._current_frames().get(self._main or 0)
        at = f" (in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno})" if frame else ""
        text = (
            f"no progress for {self._allowed / 60:.3g} minutes while {self._doing}{at}: another process is stuck (the "
            "one that does not say this), or a disk or network does not answer. The checkpoints are whole, the same "
            "command goes on; if the work really takes so long, raise run.hang_minutes"
        )
        who = f"process {os.environ.get('RANK', '0')} on {socket.gethostname()}"
        if self.folder:
            run_state.end(self.folder, run_state.FAILED, f"{who}: {text}")
        failure.speak(text)
        os._exit(failure.HUNG)
