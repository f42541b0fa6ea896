"""Locks that a killed start left on a half-built operator, for which every later start would wait for ever.

DeepSpeed compiles its C++ operators when they are first used. torch marks a build by a file `lock` in its folder, which
the builder holds open and removes at the end; killed in between, it leaves the file, and torch waits without a limit.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
from torch.utils.cpp_extension import get_default_build_root

PATIENCE = 300.0  # seconds given to a builder that may run on another host with the same home folder


def release_abandoned(patience: float = PATIENCE) -> list[Path]:
    """Remove the locks that no process of this machine holds and that are older than `patience` seconds.

    Waits until a younger one is that old or gone. Returns what was removed.
    """
    removed = []
    for lock in _locks():
        with suppress(FileNotFoundError):  # given back meanwhile
            while not _is_held(lock):
                if time.time() - lock.stat().st_mtime > patience:
                    lock.unlink()
                    removed.append(lock)
                    break
                time.sleep(0.5)
    return removed


def _locks() -> list[Path]:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return sorted(Path(named).glob("*/lock") if named else Path(get_default_build_root()).glob("*/*/lock"))


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine, of this user at least, has the file open."""
    for process in psutil.process_iter():
        try:
            if any(Path(file.path) == lock.resolve() for file in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
