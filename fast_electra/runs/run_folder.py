"""The folder of a run: claimed once, gone on with by the same command, refused to any other.

config.json        the resolved config; what a second start is compared with
inputs.json        hashes of the corpora, the auxiliary model and the weights begun with; compared likewise
verified.json      which of their files were found whole, and their sizes and times then
deepspeed.json     DeepSpeed's settings as they were filled in
state.json         who works here, and how the last start ended
environment.json   library versions and hardware
metrics.jsonl      one row per logged step and per evaluation
spikes.jsonl       one row per spike of the loss and per update left out, with its row numbers
checkpoints/  monitor/  export/  summary.json
"""

import errno
import json
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from fast_electra.corpora.manifest import library_versions
from fast_electra.files import json_file
from fast_electra.runs import run_state
from fast_electra.settings import config_file
from fast_electra.settings.config import Config

_FREE = {
    "auxiliary_gate",
    "corpus",  # what it holds is bound, wherever it lies
    "data.verify",
    "output",
    "run.activation_checkpointing",
    "run.blimp",
    "run.blimp_pairs",
    "run.compile",
    "run.evaluate_every",
    "run.floor_patience",
    "run.hang_minutes",
    "run.keep_checkpoints",
    "run.keep_every",
    "run.log_every",
    "run.max_skipped",
    "run.micro_batch_rows",
    "run.on_nan",
    "run.save_every",
    "run.save_minutes",
    "run.spike_deviations",
    "run.stop_at_step",
}
_SUMMARY, _INPUTS = "summary.json", "inputs.json"
_CLAIM = {"config.json", "environment.json", _INPUTS, "deepspeed.json", "monitor", run_state.NAME, run_state.VERIFIED}
_BEGUN = {run_state.NAME, "config.json.partial"}  # what a full disk, or a kill, may leave of a claim
_LIBRARIES = ("torch", "deepspeed", "transformers", "megatron-core", "datasets", "sentencepiece", "numpy")


def claim(config: Config) -> None:
    """Make the run's folder, or check that it belongs to this run.

    A folder in which nothing was made yet may be claimed by another run. Raises ValueError naming every setting in
    which the folder's run differs, or when the folder holds other things or another process works in it.
    """
    folder = Path(config.output)
    saved = folder / "config.json"
    if saved.exists():
        if not _is_bare(folder):
            _refuse_other_run(config_file.load(saved), config, finished=(folder / _SUMMARY).exists())
        if (folder / _SUMMARY).exists():
            return
    elif folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _BEGUN):
        raise ValueError(
            f"output = {config.output!r} exists and no run of this project made it; name a new folder with --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_state.take(config.output)
        if _is_bare(folder):
            (folder / _INPUTS).unlink(missing_ok=True)  # of a start that ended before it made anything
        config_file.save(config, saved)
        (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room, and start with the same command again"
            raise ValueError(f"output = {config.output!r}: the disk is full ({error}); {remedy}") from error
        raise ValueError(
            f"output = {config.output!r} cannot be written ({error}); name another with --output"
        ) from error


def release(config: Config) -> None:
    """Leave nothing of a start that was refused before it made anything."""
    folder = Path(config.output)
    if folder.is_dir() and (folder / "config.json").exists() and _is_bare(folder):
        shutil.rmtree(folder)


def _is_bare(folder: Path) -> bool:
    """Whether a claimed folder holds nothing that a run has made."""
    return all(path.name in _CLAIM for path in folder.iterdir())


def bound(output: str) -> dict[str, Any]:
    """What `bind` wrote down there; empty before the first start."""
    path = Path(output) / _INPUTS
    return json_file.read(path, "Name a new folder with --output") if path.exists() else {}


def bind(output: str, identity: dict[str, Any]) -> None:
    """Write down what the run was started on, or check that a resumed one is on the same.

    What the version that began it did not write down is taken as it is. Raises ValueError naming every difference.
    """
    path = Path(output) / _INPUTS
    if path.exists():
        before = json_file.read(path, "Name a new folder with --output, or remove it if the inputs are still the same")
        changed = [key for key, now in identity.items() if before.get(key, now) != now]
        if changed:
            lines = [f"{key}: {before[key]!r:.200} there, {identity[key]!r} now" for key in changed]
            raise ValueError(
                f"output = {output!r} was trained on other inputs; name a new folder with --output, or bring them "
                "back:\n  " + "\n  ".join(lines)
            )
        return
    write_json(path, identity)


def _refuse_other_run(earlier: Config, config: Config, finished: bool) -> None:
    before, now = _settings(earlier), _settings(config)
    differing = [f"{key}: {before[key]!r:.200} there, {now[key]!r} now" for key in now if before[key] != now[key]]
    differing = [line for line in differing if line.partition(":")[0] not in _FREE]
    if differing:
        longer = ""
        more = config.run.steps > earlier.run.steps
        if finished and more and [line.partition(":")[0] for line in differing] == ["run.steps"]:
            longer = _longer(config)
        raise ValueError(
            f"output = {config.output!r} holds another run; name a new folder with --output, or start with the "
            "same settings:\n  " + "\n  ".join(differing) + longer
        )


def _settings(config: Config) -> dict[str, Any]:
    """All of them by name, epsilon as the number that the run's model is trained with."""
    settings = flatten(config_file.to_dict(config))
    if config.objective != "joint_decoupled":  # whose two models have two
        settings["optimizer.epsilon"] = config.epsilon_for(config.objective)
    return settings


def _longer(config: Config) -> str:
    """How a run that is done is trained further; a joint one's two models cannot be."""
    if config.objective.startswith("joint"):
        return ""
    own = f" --auxiliary {Path(config.for_auxiliary().output) / 'export'}"
    begun = f"--initial_weights {Path(config.output) / 'export'}"
    begun += own if config.needs_auxiliary and not config.auxiliary else ""
    return f"\n  (to train what is done further: a new --output with {begun})"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def environment() -> dict[str, Any]:
    """Versions and hardware, as every measured row carries them."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "libraries": library_versions(_LIBRARIES),
        "hardware": {"gpu": gpu, "cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0))},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def require_space(folder: str, needed_bytes: int) -> None:
    """Raise ValueError unless the disk of `folder` has room for `needed_bytes`."""
    written = sum(path.stat().st_size for path in Path(folder, "checkpoints").rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes - written:
        raise ValueError(
            f"output = {folder!r}: the run will write about {needed_bytes / 2**30:.2f} GiB of checkpoints and export, "
            f"the disk has {free / 2**30:.2f} GiB free; make room, lower run.keep_checkpoints, raise run.keep_every or "
            "name another --output"
        )


class MetricsLog:
    """metrics.jsonl: rows appended as they come; a resumed run first drops those past its checkpoint.

    `kept` are the rows that were there and are not dropped.
    """

    def __init__(self, folder: str, step: int, name: str = "metrics.jsonl") -> None:
        self.path = Path(folder) / name
        rows = [(line, row) for line, row in self._rows() if row["step"] <= step]
        self.kept = [row for _, row in rows]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line, _ in rows))
        partial.replace(self.path)

    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        """The rows of the file, each with its line; those that a kill or a power cut has damaged are left out."""
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise ValueError(f"{str(self.path)!r} is not a regular file: remove it, and the log begins anew")
        *whole, _cut = self.path.read_bytes().split(b"\n")
        rows = [(line.decode(errors="replace"), _row(line)) for line in whole]
        kept = [(line, row) for line, row in rows if row is not None]
        if len(kept) < len(rows):
            damaged = self.path.with_name(self.path.name + ".damaged")
            shutil.copyfile(self.path, damaged)
            count = len(rows) - len(kept)
            what = f"{count} unreadable rows of {str(self.path)!r} are left out; the file as it was: {damaged.name}"
            print(what, flush=True)  # noqa: T201
        return kept

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")


def logged_rows(folder: str) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics.jsonl, as they are; none where there is no file."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of metrics, or None for a line that is none."""
    try:
        row = json_file.parse(line)
        return row if type(row["step"]) is int else None
    except (ValueError, KeyError, TypeError):
        return None


def _finite(value: Any) -> Any:
    """The value with null in the place of every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_summary(folder: str) -> dict[str, Any] | None:
    """The summary of a finished run; None when it has not finished. Raises ValueError when it is damaged."""
    path = Path(folder) / _SUMMARY
    remedy = "Remove it, and the same command writes it again"
    return json_file.read(path, remedy, must_be_sealed=True) if path.exists() else None


def write_summary(folder: str, summary: dict[str, Any]) -> None:
    """Write the summary, whole or not at all."""
    write_json(Path(folder) / _SUMMARY, json_file.sealed(_finite(summary)))


def save_deepspeed(folder: str, settings: dict[str, Any]) -> None:
    """Keep DeepSpeed's settings as they were filled in."""
    write_json(Path(folder) / "deepspeed.json", settings)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all. Raises ValueError for numbers that JSON cannot hold."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
