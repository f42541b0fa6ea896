"""state.json: who works in a run's folder, and how its last start ended.

One page of JSON that is written over in place, so that a full disk cannot keep the reason of an end from being written
down. The first process holds it locked (flock) as long as it lives, however it dies: a second start in the same folder
is refused, and a state of "running" that nobody holds tells of a process that was killed. On a shared disk the locks
of a machine that went down stay until its lease is over; a start elsewhere waits for that.
"""

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fast_electra.files import json_file
from fast_electra.files.staging import BusyError

NAME, VERIFIED = "state.json", "verified.json"  # the latter tells which files were found whole (verified.py)
RUNNING, FINISHED, STOPPED, PREEMPTED, FAILED = "running", "finished", "stopped", "preempted", "failed"
_PAGE = 4096
_PAUSE_SECONDS = 0.2
_INSTANT = 1.0  # seconds: whoever asks for the state holds it no longer
# Seconds until a file server takes the locks of a machine that went down for lost (NFS, Lustre: about 90).
_LEASE = 180.0
_held: dict[Path, int] = {}


def take(folder: str) -> None:
    """Lock the folder for this process and note down that it runs; nothing where this process holds it already.

    Raises BusyError naming the process that holds it.
    """
    path = (Path(folder) / NAME).resolve()
    if path in _held:
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, path)
    except BaseException:
        os.close(handle)
        raise
    _held[path] = handle
    place = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    _write(handle, {"state": RUNNING, **place})


def _lock(handle: int, path: Path) -> None:
    begun, told = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return print(f"{path} cannot be locked ({error}): start no second run there", flush=True)  # noqa: T201
            holder = read(str(path.parent))
            elsewhere = holder.get("host") not in (None, socket.gethostname())
            if time.monotonic() - begun > (_LEASE if elsewhere else _INSTANT):
                raise BusyError(
                    f"output = {str(path.parent)!r}: process {holder.get('pid')} on {holder.get('host')} works there "
                    f"since {_clock(holder.get('started'))}; wait for it, end it, or name another --output"
                ) from error
            if elsewhere and not told:
                told = True
                print(  # noqa: T201
                    f"{path} is locked by {holder['host']}: waits {_LEASE:.0f} s at most, in case it went down",
                    flush=True,
                )
        time.sleep(_PAUSE_SECONDS)


def end(folder: str, state: str, why: str = "") -> None:
    """Note down how this start ended and free the folder; the first process that failed has the word.

    Any process may tell of a failure. A folder that is gone or cannot be written keeps no note.
    """
    path = (Path(folder) / NAME).resolve()
    with suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDWR)
        try:
            before = read(folder)
            if before.get("state") == RUNNING:
                _write(handle, before | {"state": state, "why": why, "ended": time.time()})
        finally:
            os.close(handle)
    if path in _held:
        os.close(_held.pop(path))


def release(folder: str) -> None:
    """Leave nothing of a start that made nothing: a folder that holds these two notes at most is removed."""
    path = Path(folder)
    with suppress(OSError):
        if {each.name for each in path.iterdir()} <= {NAME, VERIFIED}:
            for each in path.iterdir():
                each.unlink()
            path.rmdir()


def read(folder: str) -> dict[str, Any]:
    """What state.json says; empty where there is none. Raises ValueError where it is damaged."""
    try:
        return json_file.read(Path(folder) / NAME, "It only tells how the last start ended; remove it")
    except FileNotFoundError:
        return {}


def is_held(folder: str) -> bool:
    """Whether a process that is alive holds the folder, as far as this machine's locks reach."""
    try:
        handle = os.open(Path(folder) / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _write(handle: int, values: dict[str, Any]) -> None:
    text = json.dumps(values).encode()
    while len(text) >= _PAGE:
        values = values | {"why": values["why"][: len(values["why"]) // 2]}
        text = json.dumps(values).encode()
    os.pwrite(handle, text.ljust(_PAGE - 1) + b"\n", 0)


def _clock(seconds: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, float) else "?"


def _forget() -> None:
    """A forked child must not keep its parent's folder locked."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
