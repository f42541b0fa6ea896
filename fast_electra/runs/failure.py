"""How a launcher ends: exit statuses, and one clear message for whatever it ends by.

0    done, or stopped at run.stop_at_step
1    a defect of this program: a traceback
2    refused input, or a disk, folder, memory or another process that failed
3    the numbers have gone wrong
4    no progress for run.hang_minutes
75   told to stop by SIGTERM, SIGUSR1 or Ctrl-C in training: nothing that was done is lost, the same command goes on
130  interrupted (any other Ctrl-C)

`deepspeed` passes on the first status of a process that is not 0, and 247 for one that was killed (SIGKILL).
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from tqdm import tqdm

from fast_electra.methods.divergence import DivergedError
from fast_electra.runs import preemption, run_state

REFUSED, DIVERGED, HUNG, INTERRUPTED = 2, 3, 4, 130


class WayOut(NamedTuple):
    """What a launcher's messages advise: what becomes of its work so far, and how it takes less memory."""

    goes_on: str
    smaller: str


GOES_ON = "the same command goes on from the last checkpoint"
TRAINING = WayOut(
    GOES_ON,
    "lower run.micro_batch_rows or add --run.activation_checkpointing true, which change results by rounding at most, "
    "or shard or offload more (ds_configs/)",
)
PRECOMPUTING = WayOut("the same command goes on with the shards that are not done", "free some")
PREPARING = WayOut("nothing was left behind, the same command begins anew", "give fewer --workers")
FINETUNING = WayOut("the same command goes on with the run that was not done", "lower --batch_rows or --max_length")
SCORING = WayOut("the same command begins anew", "free some")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.EROFS, errno.EIO, errno.ESTALE)
_NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread", "Cannot allocate memory")
# gloo's words, and NCCL's
_PEER_GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
_GRACE_SECONDS = 3.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it came from too little memory, of the host or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torchs = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return isinstance(error, MemoryError) or torchs


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _PEER_GONE)


def is_not_compiled(error: BaseException) -> bool:
    """Whether torch's compiler failed, told by where its errors are defined, without loading it."""
    return isinstance(error, RuntimeError) and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def describe(error: BaseException, way_out: WayOut = TRAINING) -> str:
    """What went wrong and the way out, in a sentence or two."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {way_out.goes_on}"
    if is_out_of_memory(error):
        return f"out of memory ({text.splitlines()[0]:.200}): {way_out.smaller}; {way_out.goes_on}"
    if is_lost_peer(error):
        return f"another process is gone ({text.splitlines()[0]:.200}): it says why, or was killed; {way_out.goes_on}"
    if is_not_compiled(error):
        without = "--run.compile false (of the auxiliary model: --auxiliary_engine plain) goes on without"
        return f"torch could not compile the model ({text.splitlines()[0]:.300}): {without}"
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return f"the disk is full ({text}): make room; {way_out.goes_on}"
    if isinstance(error, OSError) and error.errno in _GONE:
        return f"the disk cannot be written any more ({text}): bring it back; {way_out.goes_on}"
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def status(error: BaseException) -> int | None:
    """The exit status for it; None for a defect, which deserves its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DivergedError):
        return DIVERGED
    of_the_machine = is_out_of_memory(error) or is_lost_peer(error) or is_not_compiled(error)
    known = isinstance(error, (ValueError, OSError)) or of_the_machine
    return REFUSED if known else None


def speak(text: str) -> None:
    """A line of its own on the error stream, with the process that says it where there are several."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    who = f" (process {os.environ.get('RANK')} on {socket.gethostname()})" if several else ""
    tqdm.write(f"error{who}: {text}", file=sys.stderr)  # a progress bar makes way for it
    sys.stderr.flush()


@contextmanager
def noted(folder: str, way_out: WayOut = TRAINING) -> Iterator[None]:
    """Inside, this process works in a folder that is taken (run_state.py): what ends it early is noted there.

    Of a start that failed before it made anything, nothing is left.
    """
    try:
        yield
    except preemption.Preempted:
        run_state.end(folder, run_state.PREEMPTED)
        raise
    except BaseException as error:
        if preemption.requested() and is_not_compiled(error):  # a signal to all of a group ends the compiler too
            run_state.end(folder, run_state.PREEMPTED)
            raise preemption.Preempted from error
        run_state.end(folder, run_state.FAILED, describe(error, way_out))
        run_state.release(folder)
        raise


def tell(error: BaseException, way_out: WayOut) -> int:
    """Say what ended a launcher that is one process; returns the exit status. A defect is raised again.

    An object that a signal cut short in its making may not be able to end itself; no word is said of that.
    """
    if isinstance(error, preemption.Preempted | KeyboardInterrupt):
        sys.unraisablehook = lambda _: None
    if isinstance(error, preemption.Preempted):
        print(f"stopped; {way_out.goes_on}", flush=True)  # noqa: T201
        return preemption.EXIT_STATUS
    code = status(error)
    if code is None:
        raise error
    speak(describe(error, way_out))
    return code


def leave(error: BaseException, way_out: WayOut = TRAINING) -> NoReturn:
    """The same for one process of several: it ends at once, waiting for no other.

    The first process speaks at once and another a little later: what befell all of them is said once, because the
    launcher ends the others meanwhile. Who lost another one speaks first and ends a little later, so that the launcher
    passes on the status of the one that is gone.
    """
    code, lost_peer = status(error), is_lost_peer(error)
    if os.environ.get("RANK", "0") != "0" and code is not None and not lost_peer:
        told = preemption.requested()
        time.sleep(_GRACE_SECONDS)
        if preemption.requested() and not told:
            os._exit(code)
    code = tell(error, way_out)
    sys.stdout.flush()
    if lost_peer:
        time.sleep(_GRACE_SECONDS)
    os._exit(code)
