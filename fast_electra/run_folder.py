"""The folder of a run: claimed once, gone on with by the same command, refused to any other.

config.json        the resolved config; what a second start is compared with
environment.json   library versions and hardware
metrics.jsonl      one row per logged step and per evaluation
checkpoints/  monitor/  export/  summary.json
"""

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fast_electra import config as configs
from fast_electra.config import Config

_FREE = {
    "auxiliary_gate",
    "data.verify",
    "output",
    "run.compile",
    "run.evaluate_every",
    "run.keep_checkpoints",
    "run.log_every",
    "run.micro_batch_rows",
    "run.save_every",
    "run.stop_at_step",
}
_LIBRARIES = ("torch", "deepspeed", "transformers", "megatron-core", "datasets", "sentencepiece", "numpy")


def claim(config: Config) -> None:
    """Make the run's folder, or check that it belongs to this run.

    Raises ValueError naming every setting in which the folder's run differs, or when the folder holds other things.
    """
    folder = Path(config.output)
    saved = folder / "config.json"
    if saved.exists():
        _refuse_other_run(configs.load(saved), config)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"output = {config.output!r} exists and no run of this project made it; name a new folder with --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        configs.save(config, saved)
        (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise ValueError(
            f"output = {config.output!r} cannot be written ({error}); name another with --output"
        ) from error


def _refuse_other_run(earlier: Config, config: Config) -> None:
    before, now = flatten(configs.to_dict(earlier)), flatten(configs.to_dict(config))
    differing = [f"{key}: {before[key]!r} there, {now[key]!r} now" for key in now if before[key] != now[key]]
    differing = [line for line in differing if line.partition(":")[0] not in _FREE]
    if differing:
        raise ValueError(
            f"output = {config.output!r} holds another run; name a new folder with --output, or start with the "
            "same settings:\n  " + "\n  ".join(differing)
        )


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
        "libraries": {name: version(name) for name in _LIBRARIES},
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
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"output = {folder!r}: the run will write about {needed_bytes / 2**30:.2f} GiB of checkpoints and export, "
            f"the disk has {free / 2**30:.2f} GiB free; make room, lower run.keep_checkpoints or name another --output"
        )


class MetricsLog:
    """metrics.jsonl: rows appended as they come; a resumed run first drops those past its checkpoint."""

    def __init__(self, folder: str, step: int) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self.path)

    def _lines(self) -> list[str]:
        """The whole rows of the file; a last one cut short by a kill is dropped."""
        if not self.path.exists():
            return []
        *whole, _cut = self.path.read_text().split("\n")
        return whole

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_summary(folder: str) -> dict[str, Any] | None:
    """The summary of a finished run; None when it has not finished."""
    path = Path(folder) / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_summary(folder: str, summary: dict[str, Any]) -> None:
    """Write the summary, whole or not at all."""
    partial = Path(folder) / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    partial.replace(Path(folder) / "summary.json")
