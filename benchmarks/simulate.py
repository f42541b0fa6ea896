"""Peak memory of one full-size training step of every objective, without a GPU: the step runs on fake tensors.

Fake tensors have a shape, a type and a storage size but no contents, so that a model of 1.5 billion weights takes a
step (memory/step.py) on a laptop, operation by operation, through the objective's own code. It is the step of one
process without DeepSpeed's buffers; `per_gpu` adds those and divides by the ZeRO stage.

    python -m benchmarks.simulate [base/frozen large/joint_shallow ...] [--output runs/bench]
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from benchmarks import cases, rows
from benchmarks.cases import Case
from benchmarks.memory import step
from benchmarks.memory.live_memory import LiveMemory
from benchmarks.rows import Row

FORMULA = (
    "most bytes of live tensors at any operation of one process's micro-batch and of the update after it: bf16 weights "
    "(2 bytes a weight), float32 sums of gradients (4) and bf16 gradients as they appear (up to 2), float32 weights "
    "and two Adam moments (12), the auxiliary model in bf16, activations, temporary"
)

CASES = (
    f"recipe/objective[/sequence_length[/vocab_size[/masked/micro_rows]]][{cases.CHECKPOINTING}]; none: the report's. "
    f"Left out are {Case.sequence_length} tokens a row, {Case.vocab_size} of vocabulary and the recipe's micro-batch; "
    f"{cases.CHECKPOINTING} computes the layers again in backward (run.activation_checkpointing)"
)


def simulate(case: Case, attention: str = "sdpa") -> Row:
    """The peak of the case's step, by kind of memory, in bytes; raises ValueError for a head on all positions.

    `attention` is what transformers calls the kernel.
    """
    if case.head != "masked":
        raise ValueError(f"case {case.name!r}: training runs the LM head on masked positions only; simulate that")
    start = time.perf_counter()
    with FakeTensorMode():
        memory = LiveMemory()
        modules = step.run(case, torch.device("cpu"), memory, attention)
        num_weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    peak = memory.peak()
    return {
        "kind": "memory",
        **case.fields,
        "micro_batch_rows": cases.config(case).run.micro_batch_rows,
        "num_processes": 1,
        "zero_stage": 0,
        "trained_weights": num_weights,
        "peak_memory_gib": sum(peak.values()) / 2**30,
        "peak_bytes": peak,
        "backward_bytes": memory.peaks["backward"],
        "update_bytes": memory.peaks["update"],
        "seconds": time.perf_counter() - start,
        "n": 1,
        "formula": FORMULA,
    }


def simulate_all(wanted: Sequence[Case], path: Path) -> list[Row]:
    """The rows of these cases: those kept at `path` as far as neither case nor code has changed, the others anew."""
    kept = {row["key"]: row for row in (rows.read(path) if path.exists() else [])}
    keys = [rows.key("memory", case) for case in wanted]
    missing = [(case, key) for case, key in zip(wanted, keys, strict=True) if key not in kept]
    bar = tqdm(missing, desc="simulated", unit="case", disable=not missing, dynamic_ncols=True)
    for case, key in bar:
        bar.set_postfix_str(case.name)
        kept[key] = {"key": key, **rows.provenance("memory"), **simulate(case)}
        rows.write(path, kept.values())
    current = [kept[key] for key in keys]
    rows.write(path, current)
    return current


def main(arguments: Sequence[str]) -> int:
    """Simulate the cases named, or the report's; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=CASES)
    output = Path("runs/bench")
    parser.add_argument("--output", type=Path, default=output, help="folder of the kept rows (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        wanted = [cases.parse(name) for name in given.cases] or cases.SIMULATED
        found = simulate_all(wanted, given.output / "simulated.jsonl")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in found:
        name = f"{row['recipe']}/{row['objective']}/{row['sequence_length']}/{row['vocab_size']}"
        name += cases.CHECKPOINTING if row["activation_checkpointing"] else ""
        print(f"{name:<48} {row['micro_batch_rows']:>4} rows {row['peak_memory_gib']:8.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
