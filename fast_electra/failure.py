"""How a launcher ends: exit statuses, and one clear message for whatever it ends by.

0    done, or stopped at run.stop_at_step
1    a defect of this program: a traceback
2    refused input, or a disk, folder or memory that failed
3    the numbers have gone wrong
4    no progress for run.hang_minutes
75   told to stop by SIGTERM or SIGUSR1: the step was saved
130  interrupted (Ctrl-C)

`deepspeed` passes on the first status of a process that is not 0, and 247 for one that was killed (SIGKILL).
"""

import errno
import os
import socket
import sys
import time
from typing import NoReturn

from fast_electra import preemption
from fast_electra.divergence import DivergedError

REFUSED, DIVERGED, HUNG, INTERRUPTED = 2, 3, 4, 130
GOES_ON = "the same command goes on from the last checkpoint"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.EROFS, errno.EIO, errno.ESTALE)
_NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread", "Cannot allocate memory")
_GRACE_SECONDS = 3.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it came from too little memory, of the host or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torchs = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return isinstance(error, MemoryError) or torchs


def describe(error: BaseException) -> str:
    """What went wrong and the way out, in a sentence or two."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {GOES_ON}"
    if is_out_of_memory(error):
        return (
            f"out of memory ({text.splitlines()[0]:.200}): lower run.micro_batch_rows, which changes no result, or "
            f"shard or offload more (ds_configs/); {GOES_ON}"
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return f"the disk is full ({text}): make room; earlier checkpoints are whole, and {GOES_ON}"
    if isinstance(error, OSError) and error.errno in _GONE:
        return f"the disk cannot be written any more ({text}): bring it back; {GOES_ON}"
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def status(error: BaseException) -> int | None:
    """The exit status for it; None for a defect, which deserves its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DivergedError):
        return DIVERGED
    return REFUSED if isinstance(error, (ValueError, OSError)) or is_out_of_memory(error) else None


def speak(text: str) -> None:
    """One line on the error stream, with the process that says it where there are several."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    who = f" (process {os.environ.get('RANK')} on {socket.gethostname()})" if several else ""
    print(f"error{who}: {text}", file=sys.stderr, flush=True)  # noqa: T201


def leave(error: BaseException) -> NoReturn:
    """Say what went wrong and end the process at once, waiting for no other; a defect is raised again.

    The first process speaks at once and another a little later: what befell all of them is said once, because the
    launcher ends the others meanwhile.
    """
    code = status(error)
    if code is None:
        raise error
    if os.environ.get("RANK", "0") != "0":
        told = preemption.requested()
        time.sleep(_GRACE_SECONDS)
        if preemption.requested() and not told:
            os._exit(code)
    speak(describe(error))
    sys.stdout.flush()
    os._exit(code)
