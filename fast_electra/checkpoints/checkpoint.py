"""A checkpoint is a folder `step-00000100`: DeepSpeed's engine state, and a manifest with two integers and hashes.

Step and rows seen say where a run is; everything else about its position is computed from them. A checkpoint is
written beside its name and renamed once the manifest is in it, so that a folder of that name is complete; its hashes
are checked before it is read, and a damaged one is set aside in favour of the one before. Each process hashes the
files that it wrote. DeepSpeed unpickles its optimizer state, so a run folder is to be trusted like a program: only
files this manifest lists are read.

A checkpoint of another layout (layout.py), such as another number of processes, is read through DeepSpeed's universal
form, one file for each weight and moment, which is made beside it and removed once read.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import xxhash

from fast_electra.checkpoints import layout, universal
from fast_electra.checkpoints.layout import Layout
from fast_electra.engine import parallel
from fast_electra.files import json_file

_PARTIAL, _DAMAGED, _GENERATOR = ".partial", ".damaged", "generator"
_UNIVERSAL = ".universal" + _PARTIAL
_UNREADABLE = "unreadable"  # in place of a hash


class Position(NamedTuple):
    """Where a run is: updates done, rows seen, seconds of training so far."""

    step: int
    rows_seen: int
    seconds: float


START = Position(0, 0, 0.0)


class Keep(NamedTuple):
    """Which checkpoints stay: the last few, and those whose step is a multiple of `every` where that is not 0."""

    last: int
    every: int = 0


@dataclass(frozen=True)
class _File:
    """A file of a checkpoint, as its manifest records it."""

    bytes: int
    xxh3_128: str


def _name(step: int) -> str:
    return f"step-{step:08d}"


def save(
    engine: parallel.Engine, folder: Path, position: Position, keep: Keep, generator: parallel.Engine | None = None
) -> Path:
    """Write a checkpoint and drop those not to `keep`. All processes take part; returns its folder.

    `generator` is the second engine of a run that has one; its state lies in a folder inside the checkpoint.
    """
    name = _name(position.step)
    partial = folder / (name + _PARTIAL)
    if parallel.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    parallel.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    if generator is not None:
        generator.save_checkpoint(str(partial), tag=_GENERATOR, save_latest=False)
    parallel.barrier()
    hashes = _hashes(partial)
    if lost := [path for path, found in hashes.items() if found == _UNREADABLE]:
        raise OSError(f"{lost[0]} cannot be read back: is its disk sound?")
    if parallel.rank() == 0:
        _write_manifest(partial, position, layout.of(_both(engine, generator)), hashes)
        _discard(folder / name)
        partial.rename(folder / name)
        _sync(folder)
        clear(folder, keep)
    parallel.barrier()
    return folder / name


def clear(folder: Path, keep: Keep) -> None:
    """Remove the finished checkpoints that are not to `keep`."""
    for old in complete(folder)[: -keep.last]:
        if not (keep.every and _step(old) % keep.every == 0):
            _discard(old)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; a kill in the middle leaves nothing under its name."""
    if folder.exists():
        going = folder.with_name(f"{folder.name}.old{_PARTIAL}")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)  # what a busy disk does not give up is cleared at the next start


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written, half-removed or half-converted."""
    for path in [
        *folder.glob(f"step-*{_PARTIAL}"),
        *folder.glob(f"step-*/*{_UNIVERSAL}"),
    ]:  # the latter of old versions
        shutil.rmtree(path, ignore_errors=True)


def _both(engine: parallel.Engine, generator: parallel.Engine | None) -> list[parallel.Engine]:
    return [engine] if generator is None else [engine, generator]


def _write_manifest(folder: Path, position: Position, saved: Layout, hashes: Mapping[Path, str]) -> None:
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3_128": found}
        for path, found in hashes.items()
    }
    manifest = position._asdict() | saved._asdict() | {"files": files}
    path = folder / "manifest.json"
    path.write_text(json.dumps(json_file.sealed(manifest), indent=2) + "\n")
    _sync(path)


def _hashes(folder: Path) -> dict[Path, str]:
    """The hash of each file in a checkpoint's folder, on the disk by then. All processes take part, each on its own."""
    listed = sorted(path for path in folder.rglob("*") if path.is_file()) if parallel.rank() == 0 else []
    mine = share(parallel.from_rank_zero(listed), parallel.rank(), parallel.world_size())
    found = parallel.from_all({path: _hash_found(path) for path in mine})
    return dict(sorted((path, digest) for part in found for path, digest in part.items()))


def share(paths: Sequence[Path], rank: int, num_processes: int) -> list[Path]:
    """Those of a checkpoint's files that a process hashes: the ones it wrote, by DeepSpeed's names for them.

    Its machine has them in memory. What no name tells, or a run of more processes wrote, goes round.
    """
    return [path for turn, path in enumerate(paths) if _writer(path, turn) % num_processes == rank]


def _writer(path: Path, otherwise: int) -> int:
    named = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(named[1]) if named else otherwise


def _hash_found(path: Path) -> str:
    try:
        return _hash(path)
    except OSError:
        return _UNREADABLE


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


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def newest_sound(folder: Path, known: Mapping[Path, str] | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match its manifest, with that manifest; None when there is none.

    The hashes of files that are `known` are not asked of the disk again. Each damaged one met on the way is renamed
    `step-NNN.damaged` and named in a line on the screen.
    """
    for path in reversed(complete(folder)):
        try:
            return path, verified(path, known)
        except ValueError as error:
            aside = _free_name(path)
            path.rename(aside)
            print(f"{error}; set aside as {aside.name}, taking the one before", flush=True)  # noqa: T201
    return None


def _free_name(path: Path) -> Path:
    """Where a damaged checkpoint goes: NAME.damaged, or with a number behind it if an earlier one is there."""
    names = itertools.chain([_DAMAGED], (f"{_DAMAGED}-{number}" for number in itertools.count(2)))
    return next(free for name in names if not os.path.lexists(free := path.with_name(path.name + name)))


def verified(path: Path, known: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint, every file of which is what it says. Raises ValueError otherwise.

    `known` are the hashes of files that have been read already.
    """
    try:
        manifest = json_file.read(path / "manifest.json", "It has to be the one that was written with the checkpoint")
        json_file.typed([manifest.get(name) for name in Position._fields], Position, "manifest")
        json_file.typed(manifest.get("num_processes"), int, "num_processes")
        json_file.typed(manifest.get("zero_stage", 0), int, "zero_stage")
        json_file.typed(manifest.get("order", ""), str, "order")
        files = json_file.typed(manifest.get("files"), dict[str, _File], "files")
        json_file.require(_name(manifest["step"]) == path.name, f"it is of step {manifest['step']}")
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {path} has no readable manifest ({error})") from error
    for name, recorded in files.items():
        file = path / name
        sized = file.is_file() and file.stat().st_size == recorded.bytes
        if not sized or ((known or {}).get(file) or _hash_found(file)) != recorded.xxh3_128:
            raise ValueError(f"checkpoint {path} is damaged: {name} is not what its manifest says")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    foreign = sorted(found - set(files) - {"manifest.json"})
    if foreign:  # DeepSpeed looks for files by pattern, and unpickles them
        raise ValueError(f"checkpoint {path} holds {foreign[0]!r}, which its manifest does not list")
    return manifest


def restore(engine: parallel.Engine, folder: Path, generator: parallel.Engine | None = None) -> Position:
    """Load the newest sound checkpoint into the engine (or both); START when there is none. All processes take part.

    It may be of any number of processes and any ZeRO stage. Raises ValueError when the disk has no room to convert it.
    """
    if parallel.rank() == 0:
        clear_leftovers(folder)
    newest = parallel.from_rank_zero(complete(folder)[-1:])
    known = _hashes(newest[0]) if newest else {}
    found = parallel.from_rank_zero(newest_sound(folder, known) if parallel.rank() == 0 else None)
    if found is None:
        return START
    path, manifest = found
    _require_state_on_no_nvme(engine, path, manifest)
    engines = _both(engine, generator)
    load = _load if layout.recorded(manifest, engines) == layout.of(engines) else _load_universal
    load(engine, path)
    if generator is not None:
        load(generator, path / _GENERATOR)
    return Position(manifest["step"], manifest["rows_seen"], manifest["seconds"])


def _require_state_on_no_nvme(engine: parallel.Engine, path: Path, manifest: dict[str, Any]) -> None:
    """Refuse what DeepSpeed would go on from with new weights: its loader passes over a state swapped out to NVMe."""
    if engine.zero_nvme_offload_optimizer() or any(name.startswith("offloaded_tensors") for name in manifest["files"]):
        raise ValueError(
            f"checkpoint {path} cannot be resumed: DeepSpeed {deepspeed.__version__} does not load an optimizer's "
            "state offloaded to NVMe. Begin in another folder (--output), with ds_configs/zero3_offload.json where a "
            "run has to survive a stop"
        )


def _load(engine: parallel.Engine, path: Path) -> None:
    loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
    if loaded is None:  # DeepSpeed warns, and a run would go on with new weights
        raise ValueError(f"checkpoint {path} cannot be resumed: DeepSpeed {deepspeed.__version__} did not load it")


def _load_universal(engine: parallel.Engine, path: Path) -> None:
    """Load a checkpoint of another layout: masters, moments and the count of updates; the engine's own numbers stay."""
    step = path.parent if path.name == _GENERATOR else path
    # Beside a checkpoint, never in it: nothing there may be unlisted.
    converted = step.with_name(step.name + _UNIVERSAL)
    parallel.on_rank_zero(lambda: universal.convert(path, converted, len(engine.optimizer.param_groups)))
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(None, checkpoint_folder=str(converted))
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    universal.count_updates(optimizer.optimizer, universal.recorded_updates(converted / "zero"))
    parallel.barrier()
    parallel.on_rank_zero(lambda: shutil.rmtree(converted))
