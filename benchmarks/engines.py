"""The auxiliary model's engines side by side: seconds of a forward pass, and how far each is from the plain one.

On a GPU DeepSpeed's injected kernels, the plain engine and the compiled one; what cannot run here says why in its row.
The weights are at random, so that the most likely words lie close together and agree less often than a trained model's.

    python -m benchmarks.engines electra_base/frozen base/frozen [--output FOLDER]
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import cases, rows
from benchmarks.cases import Case
from benchmarks.contest.material import few_rows
from benchmarks.rows import Row
from fast_electra.engine import auxiliary_engine, parallel
from fast_electra.kernels import precision
from fast_electra.models.auxiliary import MaskedLM, build_masked_lm, rows_at_once

FORMULA = (
    "seconds: median of 5 forward passes of the rows that go through together; agreement: share of masked positions "
    "whose most likely token is the plain engine's; distance: mean |difference| of the log-probability of the true "
    "token"
)


def measure(case: Case) -> list[Row]:
    """A row for each engine."""
    parallel.start()
    settings = cases.config(case)
    micro, device = settings.run.micro_batch_rows, parallel.device()
    num_rows = rows_at_once(micro, settings.data.num_masked, case.vocab_size, device.type)
    batches = few_rows(case, dataclasses.replace(settings.data, held_out_rows=1), num_rows + 1)
    batch = batches.masked(np.arange(num_rows)).to(parallel.device())
    dtype = precision.dtype("auto", parallel.device().type == "cpu")
    _, shape = cases.shapes(case)
    assert shape is not None
    module = MaskedLM(build_masked_lm(shape, "sdpa", dtype).eval().requires_grad_(False))
    mask_id = batches.corpora[0].tokenizer.mask_token_id
    return [
        {
            "kind": "engine",
            **case.fields,
            "engine": trial.name,
            "model_type": shape.model_type,
            "micro_batch_rows": num_rows,
            "device": torch.cuda.get_device_name() if parallel.device().type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "num_processes": parallel.world_size(),
            "dtype": precision.name(dtype),
            "seconds": trial.seconds,
            "agreement": trial.agreement,
            "distance": trial.distance,
            "refused": trial.refused,
            "n": auxiliary_engine.TURNS,
            "formula": FORMULA,
        }
        for trial in auxiliary_engine.compare(module, batch, mask_id, dtype)
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure the cases named and keep their rows; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["electra_base/frozen", "base/frozen"], help="recipe/frozen[/...]")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the rows")
    given = parser.parse_args(arguments)
    try:
        for case in list(map(cases.parse, given.cases)):
            made = measure(case)
            rows.keep(given.output / "engines.jsonl", made)
            for row in made:
                told = row["refused"] or f"{1e3 * row['seconds']:.2f} ms, {row['agreement']:.2%} agree"
                print(f"{row['recipe']:<14} {row['engine']:<9} {told}", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
