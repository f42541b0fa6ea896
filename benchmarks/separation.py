"""What keeping documents apart costs in time, and what of a corpus's FLOPs it leaves.

Two runs of a case that differ in `data.separate_documents` alone train in turn within one process (A B A B ...), on the
same rows of a real corpus. The shares of FLOPs are counted over the whole corpus. On a CPU the block mask saves none of
them: the ratios then say what mask and positions cost. On a busy machine the one of CPU time, on one core, is the one
to read: a clock on the wall tells of the neighbours.

    taskset -c 0 python -m benchmarks.separation small/frozen/128/16000/masked/16 --corpus data/wiki [--turns 5]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks import cases
from benchmarks.contest import contestant
from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.costs import flops
from fast_electra.engine import deepspeed_config, parallel
from fast_electra.settings.config import DataConfig


def shares(case: cases.Case, corpus: str) -> dict[str, float]:
    """What is left of the discriminator's attention scores, and of the step's FLOPs, over all rows of a corpus."""
    data = DataConfig(sequence_length=case.sequence_length, held_out_rows=1)
    lengths = Batches([(Corpus.open(corpus), 1.0)], data, seed=0).document_lengths()
    discriminator, auxiliary = cases.shapes(case)
    sizes = {"batch_rows": 1, "sequence_length": case.sequence_length, "num_masked": data.num_masked}
    whole, apart = (
        flops.model_flops_per_token(case.objective, discriminator, auxiliary, **sizes, document_lengths=each)
        for each in (None, lengths)
    )
    return {
        "attention_share": flops.attention_share(discriminator, lengths, case.sequence_length),
        "flops_share": apart / whole,
    }


def compare(case: cases.Case, corpus: str, deepspeed: str, turns: int, steps: int) -> dict[str, object]:
    """Medians of both, and of the ratios of neighbouring turns."""
    parallel.start()
    compiled = parallel.device().type == "cuda"  # as in a run
    settings = deepspeed_config.read(deepspeed)
    with tempfile.TemporaryDirectory() as scratch:
        together, apart = (
            contestant.build(
                case,
                settings,
                Path(scratch) / name,
                corpus,
                contestant.Variant(separate_documents=name == "apart", compiled=compiled),
            )
            for name in ("together", "apart")
        )
        cpu: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 + turns):
            for each, spent in zip((together, apart), cpu, strict=True):
                start = time.process_time()
                each.turn(steps)
                spent.append((time.process_time() - start) / steps)
    seconds = [each.seconds[1:] for each in (together, apart)]  # the first turn warms up
    tokens = together.tokens_per_step
    return {
        "case": case.name,
        "dtype": str(together.dtype),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "turns": turns,
        "together_tokens_per_second": tokens / median(seconds[0]),
        "apart_tokens_per_second": tokens / median(seconds[1]),
        "apart_over_together": _ratio(seconds[0], seconds[1]),
        "apart_over_together_by_cpu_time": _ratio(cpu[0][1:], cpu[1][1:]),
        "cpu_seconds_together": median(cpu[0][1:]),
        **shares(case, corpus),
    }


def _ratio(together: list[float], apart: list[float]) -> dict[str, float]:
    """How fast the second is, the first being 1, over pairs of neighbouring turns."""
    ratios = sorted(plain / masked for plain, masked in zip(together, apart, strict=True))
    return {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1]}


def main(arguments: Sequence[str]) -> int:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("--corpus", required=True, help="a folder made by launchers/prepare_corpus.py")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="updates a turn")
    parser.add_argument("--deepspeed", default="ds_configs/zero1.json")
    given = parser.parse_args(arguments)
    try:
        found = compare(cases.parse(given.case), given.corpus, given.deepspeed, given.turns, given.steps)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
