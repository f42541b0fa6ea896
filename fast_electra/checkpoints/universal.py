"""A checkpoint in DeepSpeed's universal form, one file for each weight and moment: read by any number of processes.

Files and weights alone: who converts, and who waits for it, is checkpoint.py's.
"""

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal


def convert(path: Path, universal: Path, num_groups: int) -> None:
    """DeepSpeed's universal form of a checkpoint that was verified, in `universal`.

    DeepSpeed's converter looks into subfolders and takes its paths for patterns, so it gets links to the engine's own
    files in a folder of its own, by relative names. What it writes is brought into a form that both loaders
    take (ZeRO-1's and 2's, ZeRO-3's), without the parameter groups' numbers: ZeRO-3's loader would give the first
    group's weight decay to all, and the recipe has them anyway.
    """
    source = universal / "source"
    shutil.rmtree(universal, ignore_errors=True)
    source.mkdir(parents=True)
    for file in path.glob("*.pt"):
        (source / file.name).symlink_to(file.resolve())
    arguments = argparse.Namespace(input_folder="source", output_folder="universal", keep_temp_folder=False)
    arguments.num_extract_workers, arguments.num_merge_workers = 1, 1
    arguments.strict, arguments.inject_missing_state = True, True
    with contextlib.chdir(universal), contextlib.redirect_stdout(io.StringIO()), _no_bars():
        ds_to_universal.main(arguments)
    (universal / "universal" / "zero").rename(universal / "zero")
    updates = recorded_updates(universal / "zero")
    for weight in filter(Path.is_dir, (universal / "zero").iterdir()):
        for file in weight.glob("*.pt"):
            values = torch.load(file, map_location="cpu", weights_only=False)
            if isinstance(values, torch.Tensor) and values.ndim:  # of ZeRO-3; ZeRO-1 and 2 wrap it, and all read that
                torch.save({ds_to_universal.PARAM: values}, file)
        torch.save(updates, weight / "step.pt")
    record = {
        "ds_version": deepspeed.__version__,
        "param_groups": [{} for _ in range(num_groups)],
        "optimizer_state_dict": {"state": {0: {"step": updates}}, "param_groups": [{}]},
    }
    torch.save(record, universal / "zero" / "optimizer_state.pt")


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """The converter shows no progress bars; the error stream stays open to what else this process has to say."""
    replaced, ds_to_universal.tqdm = ds_to_universal.tqdm, SimpleNamespace(tqdm=iter)
    try:
        yield
    finally:
        ds_to_universal.tqdm = replaced


def recorded_updates(zero: Path) -> float:
    """How many updates the optimizer has made, as a universal checkpoint of ZeRO-1 and 2, or of ZeRO-3, says."""
    step = next(zero.glob("*/step.pt"), None)
    if step is not None:
        return float(torch.load(step, weights_only=True))
    record = torch.load(zero / "optimizer_state.pt", map_location="cpu", weights_only=False)
    return float(record["optimizer_state_dict"]["state"][0]["step"])


def count_updates(optimizer: torch.optim.Optimizer, updates: float) -> None:
    """Give each parameter a count of its own: DeepSpeed's ZeRO-3 loader has all share one, which then counts for all.

    torch's fused optimizers keep it as a tensor beside the moments, DeepSpeed's CPU one as an integer.
    """
    fused = isinstance(optimizer, torch.optim.AdamW)
    for state in optimizer.state.values():
        if "exp_avg" in state:
            count = torch.tensor(updates, dtype=torch.float32, device=state["exp_avg"].device)
            state["step"] = count if fused else int(updates)
