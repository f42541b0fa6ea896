"""Kill a run at random moments, start it again with the same command each time, and see what it ends with.

A third of the kills is aimed into saving (a half-written checkpoint lies on the disk), a third into training (after
some more steps), a third falls anywhere, start-up included. Each takes the whole process group: launcher and ranks.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from conftest import launch, launched, metrics
from safetensors.torch import load_file


class Kill(NamedTuple):
    """What one kill was aimed at, and what it left: the last logged step, and whether a checkpoint was half-written."""

    aim: str
    step: int
    half_written: bool


def kill_again_and_again(
    arguments: list[str], output: Path, kills: int, most_steps: int, num_processes: int = 2, seed: int = 0
) -> list[Kill]:
    """Start a run and kill it `kills` times, each after `most_steps` or so at the latest, then let it end.

    Returns what each kill was.
    """
    luck, done, log = random.Random(seed), [], output.with_suffix(".log")
    for number in range(kills):
        aim = ("saving", "training", "anywhere")[number % 3]
        with launched(*arguments, num_processes=num_processes, log=log) as process:
            _await_moment(aim, output, process, luck, most_steps)
            assert process.poll() is None, f"the run ended before kill {number + 1}:\n{log.read_text()[-3000:]}"
            members = [process, *psutil.Process(process.pid).children(recursive=True)]
            os.killpg(process.pid, signal.SIGKILL)
            psutil.wait_procs([each for each in members if isinstance(each, psutil.Process)], timeout=30)
        done.append(Kill(aim, last_step(output), bool(half_written(output))))
    launch(*arguments, num_processes=num_processes)
    return done


def _await_moment(aim: str, output: Path, process, luck: random.Random, most_steps: int) -> None:
    """Return when it is time to kill, or when the run has ended."""
    begun, wanted = last_step(output), luck.randint(1, 6)
    if aim == "anywhere":
        end = time.monotonic() + luck.uniform(0.0, 30.0)
        while time.monotonic() < end and process.poll() is None and last_step(output) < begun + most_steps:
            time.sleep(0.005)
        return
    while process.poll() is None and last_step(output) < begun + wanted:
        time.sleep(0.005)
    longest_wait = 0.03
    while aim == "saving" and process.poll() is None:
        while process.poll() is None and not half_written(output):
            time.sleep(0.0005)
        time.sleep(luck.uniform(0.0, longest_wait))
        if _held_in_saving(output, process):
            return
        longest_wait /= 2  # it was past: on a faster machine a save takes less


def _held_in_saving(output: Path, process) -> bool:
    """Hold the run still; whether it now is half through a save, else it goes on."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(0.02)  # what the kernel had begun, a rename perhaps, ends
    if half_written(output):
        return True
    os.killpg(process.pid, signal.SIGCONT)
    return False


def half_written(output: Path) -> list[Path]:
    return list(output.glob("checkpoints/*.partial"))


def last_step(output: Path) -> int:
    """The last step in metrics.jsonl; 0 before there is one."""
    if not (output / "metrics.jsonl").exists():
        return 0
    lines = (output / "metrics.jsonl").read_text().split("\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def states(output: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a finished run left: its export, and all of its last checkpoint."""
    found = dict(load_file(output / "export" / "model.safetensors"))
    last = max((output / "checkpoints").glob("step-????????"))
    for file in sorted(last.rglob("*.pt")):
        found |= _tensors(torch.load(file, weights_only=False), file.name)
    return found


def _tensors(value, name: str) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for part, inner in items for key, tensor in _tensors(inner, f"{name}/{part}").items()}


def differing(output: Path, reference: Path) -> list[str]:
    """The tensors in which two finished runs differ in any bit; the losses that they logged are compared too."""
    got, expected = states(output), states(reference)
    assert len(expected) > 20
    names = [name for name in expected | got if name not in got or name not in expected]
    names += [name for name in expected.keys() & got.keys() if not torch.equal(got[name], expected[name])]
    rows = [[(row["step"], row.get("loss")) for row in metrics(each)] for each in (output, reference)]
    return names + ([] if rows[0] == rows[1] else ["metrics.jsonl"])
