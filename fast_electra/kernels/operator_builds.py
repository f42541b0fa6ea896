"""DeepSpeed's C++ operators are built when they are first used: once, and by none that waits for ever.

torch marks a build by a file `lock` in its folder, which the builder holds open and removes at the end; killed in
between, it leaves the file, and torch waits without a limit. It has ninja decide whether there is anything to build,
and ninja takes what another version of itself has built for stale.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from torch.utils.cpp_extension import get_default_build_root

PATIENCE = 300.0  # seconds given to a builder that may run on another host with the same home folder
PATIENCE_HERE = 60.0  # on a disk of this machine's own: to one in another container
_OWN_DISKS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs"})


def prefer_own_ninja() -> None:
    """Have this Python's own ninja found before another, whether its environment is activated or not."""
    own = Path(sys.executable).parent
    if (own / "ninja").exists():
        os.environ["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def patience_for(folder: Path) -> float:
    """Seconds after which a lock in `folder` that no process here holds is nobody's: fewer where no other host sees it.

    A file system of an unknown kind is taken for one that several hosts share.
    """
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(each.mountpoint)]
    kind = max(reversed(mounts), key=lambda each: len(each.mountpoint)).fstype if mounts else ""  # of equals the last
    return PATIENCE_HERE if kind in _OWN_DISKS else PATIENCE


def release_abandoned(patience: float | None = None, say: Callable[[str], None] = lambda _: None) -> None:
    """Remove the locks that no process of this machine holds and that are older than `patience` seconds.

    Waits until a younger one is that old or gone. What it waits for and what it removes it tells to `say`. Without
    `patience` it is what the lock's file system asks for.
    """
    for lock in _locks():
        told, given = False, patience_for(lock.parent) if patience is None else patience
        with suppress(FileNotFoundError):  # given back meanwhile
            while not _is_held(lock):
                left = given - (time.time() - lock.stat().st_mtime)
                if left < 0:
                    lock.unlink()
                    say(f"removed {lock}: the start that was building this operator was killed")
                    break
                if not told:
                    say(f"waiting for {lock}, {left:.0f} s at most: no process here builds this operator")
                    told = True
                time.sleep(0.5)


def announce(name: str, say: Callable[[str], None]) -> None:
    """Tell `say` of a build that a start will wait for: no built operator of that name lies where it would be."""
    if not _in_build_folders(f"{name}/*.so"):
        say(f"building {name}, an operator in C++: a minute or two at most, once on this machine")


def _locks() -> list[Path]:
    return _in_build_folders("*/lock")


def _in_build_folders(pattern: str) -> list[Path]:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return sorted(Path(named).glob(pattern) if named else Path(get_default_build_root()).glob(f"*/{pattern}"))


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine, of this user at least, has the file open."""
    for process in psutil.process_iter():
        try:
            if any(Path(file.path) == lock.resolve() for file in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
