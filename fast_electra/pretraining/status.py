"""What a run's folder says from outside, while the run goes on or after: state, step, time left, checkpoints, losses.

Only files are read, nothing is written and no process is asked; a state of "running" that nobody holds is "dead".
"""

import time
from pathlib import Path
from typing import Any

from fast_electra.checkpoints import checkpoint
from fast_electra.runs import run_state
from fast_electra.runs.run_folder import logged_rows
from fast_electra.settings import config_file

DEAD, EMPTY = "dead", "never started"


def of(folder: str, hashes: bool = True) -> dict[str, Any]:
    """The facts of one run. Raises ValueError when `folder` is no run's.

    `hashes` reads every byte of the newest checkpoint; without it nothing is said of its health.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{folder!r} is no run's folder: it holds no config.json; name the --output of a run")
    config, state = config_file.load(path / "config.json"), run_state.read(folder)
    rows = logged_rows(folder)
    last: dict[str, Any] = next((row for row in reversed(rows) if "seconds" in row), {})
    loss = next((row["loss"] for row in reversed(rows) if row.get("loss") is not None), None)
    name = state.get("state", EMPTY)
    if name == run_state.RUNNING and not run_state.is_held(folder):
        name = DEAD
    step = config.run.steps if name == run_state.FINISHED else last.get("step", 0)
    per_step = last["seconds"] / last["step"] if last else None
    return {
        "folder": folder,
        "state": name,
        "step": step,
        "steps": config.run.steps,
        "seconds_left": (config.run.steps - step) * per_step if per_step is not None else None,
        "seconds_since_sign_of_life": time.time() - _latest(path),
        "loss": loss,
        "skipped_updates": last.get("skipped_updates", 0),
        "checkpoint": _checkpoint(path / "checkpoints", hashes),
        "host": state.get("host"),
        "pid": state.get("pid"),
        "why": state.get("why") or _WHY.get(name, ""),
        "auxiliary": _auxiliary(path / "auxiliary", hashes) if not step else None,
    }


_WHY = {
    DEAD: "its process is gone and said nothing: killed by hand, by the scheduler or for lack of memory, or the "
    "machine went down; the same command goes on from the last checkpoint",
    run_state.STOPPED: "as run.stop_at_step asked; raise it or leave it out to go on",
    run_state.PREEMPTED: "a signal asked for it; the same command goes on",
}


def _auxiliary(folder: Path, hashes: bool) -> dict[str, Any] | None:
    """The facts of the run that makes this run's auxiliary model, until it has."""
    if not (folder / "config.json").is_file():
        return None
    facts = of(str(folder), hashes)
    return facts if facts["state"] != run_state.FINISHED else None


def _latest(folder: Path) -> float:
    files = [folder / name for name in ("metrics.jsonl", run_state.NAME, "config.json")]
    return max(file.stat().st_mtime for file in files if file.exists())


def _checkpoint(folder: Path, hashes: bool) -> str:
    """The newest checkpoint and its health, in words."""
    found = checkpoint.complete(folder)
    if not found:
        return "none yet"
    if not hashes:
        return f"{found[-1].name} (not checked)"
    try:
        checkpoint.verified(found[-1])
    except ValueError as error:
        if not found[-1].exists():  # the run has removed it meanwhile, for newer ones
            return _checkpoint(folder, hashes)
        return f"{found[-1].name} (damaged: {error})"
    return f"{found[-1].name} (whole: every byte matches its hash)"


def describe(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    left = facts["seconds_left"]
    time_left = f", {_duration(left)} left" if left and facts["state"] == run_state.RUNNING else ""
    who = f" by process {facts['pid']} on {facts['host']}" if facts["state"] == run_state.RUNNING else ""
    skipped = f", {facts['skipped_updates']} updates left out" if facts["skipped_updates"] else ""
    ago = f"last sign of life {_duration(facts['seconds_since_sign_of_life'])} ago"
    lines = [
        f"{facts['folder']}: {facts['state']}{who}, {ago}",
        f"  step        {facts['step']:,} of {facts['steps']:,}{time_left}",
        f"  loss        {facts['loss']:.4f}{skipped}" if facts["loss"] is not None else "  loss        none logged yet",
        f"  checkpoint  {facts['checkpoint']}",
    ]
    if facts["why"]:
        lines.append(f"  why         {facts['why']}")
    if facts["auxiliary"]:
        lines.append(f"  first       its auxiliary model\n{describe(facts['auxiliary'])}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
