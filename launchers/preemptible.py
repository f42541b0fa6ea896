"""Start a training command so that a signal to it saves, however long that takes, and ends it with the same status.

python launchers/preemptible.py deepspeed --num_gpus 8 launchers/pretrain.py --recipe base ...

For containers, as their first process, and service managers (systemd: KillMode=mixed). `deepspeed`, sent a signal, ends
at once or kills the processes that train after 30 s; this hands SIGTERM and SIGUSR1 to them alone, once they are ready
for it, and waits for their end: 75 when all was saved. Ctrl-C is handed on too, and ends all at once if repeated.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 0.2
_GIVEN = "CROSS_RANK"  # only DeepSpeed's launcher sets it, for those that it starts; RANK may stand around all of them


def trains(process: psutil.Process) -> bool:
    """Whether it is a process that trains, rather than one above or below it, and has its handlers."""
    parent = process.parent()
    if _GIVEN not in process.environ() or parent is None or _GIVEN in parent.environ():
        return False
    (caught,) = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def hand_on(number: int, above: psutil.Process, told: set[int]) -> None:
    """Send the signal to the processes that train and are not `told` yet."""
    with suppress(psutil.Error, OSError):  # a process that has ended meanwhile: the next look finds the others
        for process in above.children(recursive=True):
            if process.pid not in told and trains(process):
                process.send_signal(number)
                told.add(process.pid)


def ctrl_c(signals: list[int], number: int, _frame: FrameType | None) -> None:
    """One more of the signals the first time, KeyboardInterrupt when it comes again."""
    signals.append(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(command: list[str]) -> int:
    """Run the command; returns its status, or as a shell does 128 + the number of the signal that ended it."""
    signals: list[int] = []
    for each in SIGNALS:
        signal.signal(each, lambda number, _frame: signals.append(number))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell has its background jobs ignore it
        signal.signal(signal.SIGINT, partial(ctrl_c, signals))
    told = set[int]()
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"error: {command[0]!r} cannot be started: {error.strerror}; give the whole command", file=sys.stderr)
        return 2
    status = None
    try:
        while status is None:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(_LOOK_SECONDS)
            if signals and status is None:
                hand_on(signals[0], psutil.Process(process.pid), told)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] else 2)
    sys.exit(main(sys.argv[1:]))
