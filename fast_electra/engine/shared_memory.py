"""Memory that DeepSpeed shares between the processes of a machine and never gives back.

Where all processes of a run are on one machine's CPUs, each makes a segment of 69 MB in /dev/shm that the others map
for their all-reduce, and none removes it, whether it is killed or ends well (csrc/cpu/comm/shm.cpp of deepspeed 0.19.8:
`shared_close` is called by nothing). The next run of the same port would find it. A segment that all have mapped needs
no name any more, and without one the kernel frees it with the last of them, however that ends.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

SEGMENTS = Path("/dev/shm")
PATIENCE = 60.0  # seconds given to a start that may run in another container with the same /dev/shm
_PREFIX = "deepspeed_allreduce_buffer"


def unname(rank: int) -> None:
    """Take the name from this process's segment, once all processes have mapped it."""
    place = f"{os.environ.get('MASTER_ADDR', '')}_{os.environ.get('MASTER_PORT', '')}"
    (SEGMENTS / f"{_PREFIX}_{os.getuid()}_{place}_{rank}").unlink(missing_ok=True)


def release_abandoned(patience: float = PATIENCE) -> list[Path]:
    """Remove this user's segments that no process has open and that are older than `patience` seconds.

    They are those of starts that were killed before their segments had lost their names. Returns what was removed.
    """
    removed = []
    old = [each for each in SEGMENTS.glob(f"{_PREFIX}_{os.getuid()}_*") if _age(each) > patience]
    held = _open_files() if old else set()
    for segment in old:
        if str(segment) not in held:
            segment.unlink(missing_ok=True)
            removed.append(segment)
    return removed


def _age(segment: Path) -> float:
    """Seconds since it was made; 0 for one that is gone."""
    with suppress(FileNotFoundError):
        return time.time() - segment.stat().st_mtime
    return 0.0


def _open_files() -> set[str]:
    """What the processes of this user have open; DeepSpeed never closes a segment."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            found.add(str(each.readlink()))
    return found
