"""A folder that appears complete or not at all: written beside its place as NAME.partial, then renamed.

Whatever ends the writing early (an error, Ctrl-C, a full disk), nothing is left. After a kill that cannot be caught
the .partial folder stays, and the next attempt clears it; a lock tells such a remainder from another process at work.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class BusyError(ValueError):
    """Another process works there."""


@contextmanager
def staged(output: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give an empty folder beside `output` and rename it to `output` when the block ends without an error.

    Raises FileExistsError if `output` is there and not an empty folder (a link is none), BusyError if another
    process is writing it, and OSError (ENOSPC) if the disk has less than `needed_bytes` (an estimate) left or becomes
    full.
    """
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise FileExistsError(f"{str(output)!r} exists already: choose another output, or remove it first")
    partial = output.with_name(output.name + ".partial")
    missing = [folder for folder in partial.parents if not folder.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _take(lock, partial)
        try:
            _clear(partial)
            _require_space(partial, needed_bytes)
            with _full_disk_explained(output):
                yield partial
                partial.replace(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # another process may have put something there since
                for folder in missing:
                    folder.rmdir()
            raise
    finally:
        os.close(lock)


def _take(lock: int, partial: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BusyError(
            f"another process is writing {str(partial)!r}: wait for it, end it, or choose another output"
        ) from error


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise _full(folder, f"needs about {needed_bytes / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free")


@contextmanager
def _full_disk_explained(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(output, "became full before it was complete; nothing was left behind") from error
        raise


def _full(path: Path, what: str) -> OSError:
    return OSError(
        errno.ENOSPC, f"no space left on the disk of {str(path)!r}: it {what}. Free some, or choose another disk"
    )
