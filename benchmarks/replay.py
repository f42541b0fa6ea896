"""What replacement paths cost and what they save: steps fed three ways through one engine, the build, the bytes.

One discriminator under DeepSpeed is trained in turn on inputs made ready before the clock starts (`ready`), on replayed
ones (`replay`: batch made and paths read within the step; a run makes its batches ahead in a thread) and on samples of
the auxiliary model (`frozen`), A B C B C A ..., so that a machine that slows down slows all alike. The rows are few and
their paths are really built, stored and read. Words and weights are made up unless a corpus and an auxiliary model are
named; only with them do the figures on sizes and entries mean anything.

    python -m benchmarks.replay base/frozen/512/32000/masked/4 [--corpus FOLDER --auxiliary FOLDER] [--turns 5]
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from benchmarks import cases, rows
from benchmarks.cases import Case
from benchmarks.contest import contestant, material
from benchmarks.rows import Row
from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.engine import deepspeed_config, parallel
from fast_electra.kernels import precision
from fast_electra.methods.objectives import Frozen
from fast_electra.methods.replay import Replay
from fast_electra.models.auxiliary import Auxiliary
from fast_electra.pretraining import setup_run
from fast_electra.pretraining.precompute import Precomputation, provenance_of
from fast_electra.pretraining.setup_run import Run
from fast_electra.replacements import replacement_store
from fast_electra.replacements.replacement_paths import TemperatureGrid
from fast_electra.settings.config import Config

RANGES = ((1.0, 1.5), (1.0, 2.0), (1.0, 4.0))
FORMULA = (
    "medians over n turns. replay_to_ready: seconds of a replayed step / of a step on ready-made input, turn by turn; "
    "paths_to_forward: seconds to build and encode paths, forward pass included, / of the forward pass alone; "
    "passes_to_pay: seconds to build one draw of a row / seconds that a step saves on a row (frozen - replay): passes "
    "over the corpus, of all runs together, after which a stored draw has paid for itself"
)


def measure(case: Case, settings: dict[str, Any], turns: int, corpus: str, auxiliary: str) -> Row:
    """The row of a case, whose objective is taken as `frozen`. Raises ValueError where case and corpus do not fit."""
    parallel.start()
    case = dataclasses.replace(case, objective="frozen")
    with tempfile.TemporaryDirectory() as scratch:
        batches = _few_rows(case, corpus, turns)
        run = _run(case, settings, batches, Path(scratch), auxiliary)
        frozen = cast(Frozen, run.objective)
        work = Precomputation(
            cast(Auxiliary, frozen.auxiliary), batches, provenance_of(batches, "made up", material.GRID)
        )
        build = _build_seconds(work, run.config.run.micro_batch_rows, turns)
        manifest = material.store_paths(Path(scratch) / "paths", work)
        store = replacement_store.ReplacementStore(Path(scratch) / "paths")
        replayed = Replay(store, frozen.auxiliary.pad_id, run.config.temperature, run.config.data.mask_rate)
        steps = _step_seconds(run, frozen, replayed, turns)
        run.engine.destroy()
    return _row(run, case, steps, build, manifest) | {
        "entries": [_entries(work, low, high) for low, high in RANGES] if auxiliary else None,
        "corpus": corpus or "random words",
        "auxiliary": auxiliary or "random weights",
    }


def _few_rows(case: Case, corpus: str, turns: int) -> Batches:
    """As many rows as the turns need."""
    settings = cases.config(case)
    micro = settings.run.micro_batch_rows
    data = dataclasses.replace(settings.data, held_out_rows=micro, num_draws=1)
    return material.few_rows(case, data, (turns + 2) * micro, corpus)


def _run(case: Case, settings: dict[str, Any], batches: Batches, scratch: Path, auxiliary: str) -> Run:
    config: Config = cases.config(case)
    if not auxiliary:
        auxiliary = str(scratch / "auxiliary")
        material.write_auxiliary(case, batches, Path(auxiliary))
    micro = config.run.micro_batch_rows
    config = dataclasses.replace(
        config,
        output=str(scratch),
        auxiliary=auxiliary,
        auxiliary_gate=False,
        data=batches.data,
        run=dataclasses.replace(config.run, batch_rows=micro, steps=100),
    )
    return setup_run.build(config, settings, batches)


def _seconds(action: Callable[[], Any]) -> float:
    start = contestant.now()
    action()
    return contestant.now() - start


def _build_seconds(work: Precomputation, num_rows: int, turns: int) -> dict[str, list[float]]:
    """Seconds of the auxiliary model's forward pass, and of paths and their encoding, on `num_rows` rows a turn."""

    def forward(batch: MaskedBatch) -> None:
        for _ in work.auxiliary.logits(batch):
            pass

    found: dict[str, list[float]] = {"forward": [], "paths": []}
    for turn in range(turns + 1):
        keys = range(turn * num_rows, (turn + 1) * num_rows)
        batch = work.batches.masked(np.asarray(keys)).to(parallel.device())
        found["forward"].append(_seconds(lambda batch=batch: forward(batch)))  # type: ignore[misc]
        found["paths"].append(_seconds(lambda keys=keys: work.provenance.codec.encode(work.paths(keys))))  # type: ignore[misc]
    return {name: seconds[1:] for name, seconds in found.items()}


def _step_seconds(run: Run, frozen: Frozen, replayed: Replay, turns: int) -> dict[str, list[float]]:
    """Seconds of an update fed each way, turn by turn, the first turn dropped."""
    micro = run.config.run.micro_batch_rows
    found: dict[str, list[float]] = {"ready": [], "replay": [], "frozen": []}
    for turn in range(turns + 1):
        first, u = turn * micro, turn / (turns + 1)
        ready = replayed.inputs(run.batches.training(first, micro).to(parallel.device()), u)

        def step(make: Callable[[], Any]) -> None:
            loss, *_ = run.engine(*make())
            run.engine.backward(loss)
            run.engine.step()

        def made_by(objective: Frozen, first: int = first, u: float = u) -> Any:
            return objective.inputs(run.batches.training(first, micro).to(parallel.device()), u)

        feeds: list[tuple[str, Callable[[], Any]]] = [
            ("ready", lambda ready=ready: ready),  # type: ignore[misc]
            ("replay", lambda: made_by(replayed)),
            ("frozen", lambda: made_by(frozen)),
        ]
        for name, feed in feeds[turn % 3 :] + feeds[: turn % 3]:
            found[name].append(_seconds(lambda feed=feed: step(feed)))  # type: ignore[misc]
    return {name: seconds[1:] for name, seconds in found.items()}


def _row(run: Run, case: Case, steps: dict[str, list[float]], build: dict[str, list[float]], made: Row) -> Row:
    micro = run.config.run.micro_batch_rows
    saved = median(steps["frozen"]) - median(steps["replay"])
    return {
        "kind": "replay",
        **case.fields,
        "micro_batch_rows": micro,
        "device": torch.cuda.get_device_name() if parallel.device().type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "compiled": run.config.run.compile,
        "dtype": precision.name(precision.dtype("auto", parallel.device().type == "cpu")),
        "step_seconds": steps,
        "tokens_per_second": {name: micro * case.sequence_length / median(each) for name, each in steps.items()},
        "replay_to_ready": median(a / b for a, b in zip(steps["replay"], steps["ready"], strict=True)),
        "build_seconds": build,
        "paths_to_forward": median(a / b for a, b in zip(build["paths"], build["forward"], strict=True)),
        "passes_to_pay": median(build["paths"]) / saved if saved > 0 else None,
        "bytes_per_token": made["bytes_per_token"],
        "bytes_per_masked_position": made["bytes_per_masked_position"],
        "n": len(steps["replay"]),
        "formula": FORMULA,
    }


def _entries(work: Precomputation, low: float, high: float) -> Row:
    """Entries of a position's path over a range of temperatures: the mean, and positions by their number."""
    grid = TemperatureGrid.covering(low, high)
    narrowed = dataclasses.replace(work, provenance=dataclasses.replace(work.provenance, grid=grid))
    counts = narrowed.paths(range(min(256, work.batches.num_rows))).counts.double()
    return {
        "t_min": low,
        "t_max": high,
        "mean": float(counts.mean()),
        "positions_by_entries": torch.bincount(counts.long()).tolist(),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure the cases named and add their rows to the output; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="recipe/frozen[/sequence_length[/vocab_size[/masked/micro_rows]]]")
    parser.add_argument("--deepspeed", default="ds_configs/zero1.json", help="DeepSpeed's JSON")
    parser.add_argument("--turns", type=int, default=5, help="turns that count")
    parser.add_argument("--corpus", default="", help="a prepared corpus; none: random words")
    parser.add_argument("--auxiliary", default="", help="a masked LM for it; none: the recipe's, with random weights")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the rows")
    given = parser.parse_args(arguments)
    try:
        settings = deepspeed_config.read(given.deepspeed)
        wanted = [cases.parse(name) for name in given.cases] or cases.REPLAYED[parallel.device().type]
        made = [measure(case, settings, given.turns, given.corpus, given.auxiliary) for case in wanted]
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows.keep(given.output / "replay.jsonl", made)
    for row in made:
        told = (
            "recipe",
            "tokens_per_second",
            "replay_to_ready",
            "paths_to_forward",
            "passes_to_pay",
            "bytes_per_token",
        )
        print(json.dumps({name: row[name] for name in (*told, "entries")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
