"""What a run has found whole: files that are the same since, by size and time, are not read again at its next start.

Reading half a terabyte takes one process minutes, for which a thousand GPUs wait, at every start after a preemption.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from fast_electra.files import json_file
from fast_electra.runs.run_folder import write_json
from fast_electra.runs.run_state import VERIFIED


def once(output: str, files: Iterable[Path], identity: str, verify: Callable[[], None]) -> None:
    """`verify` these files, unless an earlier start in the folder `output` did and they are the same by size and time.

    `identity` tells what they were held against. What `verify` raises is raised, and nothing is noted down then.
    """
    note = Path(output) / VERIFIED
    now = {str(each.resolve()): [*_state(each), identity] for each in files}
    before = _read(note)
    if now and all(before.get(name) == state for name, state in now.items()):
        return
    verify()
    if note.parent.is_dir():
        write_json(note, json_file.sealed(before | now))


def _state(path: Path) -> tuple[int, int]:
    """Its size and when it was changed; one that is not there is like none that was found whole."""
    if not path.is_file():
        return -1, -1
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(note: Path) -> dict[str, object]:
    """What is noted down; nothing where that is damaged."""
    try:
        return json_file.read(note, "It spares reading; remove it", must_be_sealed=True)
    except (FileNotFoundError, ValueError):
        return {}
