"""A checkpoint is a folder `step-00000100`: DeepSpeed's engine state, and a manifest with two integers and hashes.

Step and rows seen say where a run is; everything else about its position is computed from them. A checkpoint is
written beside its name and renamed once the manifest is in it, so that a folder of that name is complete; its hashes
are checked before it is read, and a damaged one is set aside in favour of the one before. DeepSpeed unpickles its
optimizer state, so a run folder is to be trusted like a program: only files this manifest lists are read.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from fast_electra import parallel

_PARTIAL, _DAMAGED, _GENERATOR = ".partial", ".damaged", "generator"


class Position(NamedTuple):
    """Where a run is: updates done, rows seen, seconds of training so far."""

    step: int
    rows_seen: int
    seconds: float


START = Position(0, 0, 0.0)


def save(
    engine: parallel.Engine, folder: Path, position: Position, keep: int, generator: parallel.Engine | None = None
) -> Path:
    """Write a checkpoint and drop all but the last `keep`. All processes take part; returns its folder.

    `generator` is the second engine of a run that has one; its state lies in a folder inside the checkpoint.
    """
    name = f"step-{position.step:08d}"
    partial = folder / (name + _PARTIAL)
    if parallel.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    parallel.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    if generator is not None:
        generator.save_checkpoint(str(partial), tag=_GENERATOR, save_latest=False)
    parallel.barrier()
    if parallel.rank() == 0:
        _write_manifest(partial, position)
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
        _sync(folder)
        for old in complete(folder)[:-keep]:
            shutil.rmtree(old)
    parallel.barrier()
    return folder / name


def _write_manifest(folder: Path, position: Position) -> None:
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3_128": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = position._asdict() | {"num_processes": parallel.world_size(), "files": files}
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(path)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def complete(folder: Path) -> list[Path]:
    """The folders of finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


def newest_sound(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match its manifest, with that manifest; None when there is none.

    Each damaged one met on the way is renamed `step-NNN.damaged` and named in a line on the screen.
    """
    for path in reversed(complete(folder)):
        try:
            return path, _verified(path)
        except ValueError as error:
            path.rename(path.with_name(path.name + _DAMAGED))
            print(f"{error}; set aside as {path.name}{_DAMAGED}, taking the one before", flush=True)  # noqa: T201
    return None


def _verified(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = {str(name): (int(of["bytes"]), str(of["xxh3_128"])) for name, of in manifest["files"].items()}
        Position(int(manifest["step"]), int(manifest["rows_seen"]), float(manifest["seconds"]))
        int(manifest["num_processes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} has no readable manifest ({error})") from error
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size or _hash(file) != digest:
            raise ValueError(f"checkpoint {path} is damaged: {name} is not what its manifest says")
    return manifest


def restore(engine: parallel.Engine, folder: Path, generator: parallel.Engine | None = None) -> Position:
    """Load the newest sound checkpoint into the engine (or both); START when there is none. All processes take part.

    Raises ValueError when it was written by another number of processes.
    """
    found = parallel.from_rank_zero(newest_sound(folder) if parallel.rank() == 0 else None)
    if found is None:
        return START
    path, manifest = found
    if manifest["num_processes"] != parallel.world_size():
        raise ValueError(
            f"checkpoint {path} was written by {manifest['num_processes']} processes, this run has "
            f"{parallel.world_size()}; start it with the same number"
        )
    engine.load_checkpoint(str(path.parent), tag=path.name)
    if generator is not None:
        generator.load_checkpoint(str(path), tag=_GENERATOR)
    return Position(manifest["step"], manifest["rows_seen"], manifest["seconds"])
