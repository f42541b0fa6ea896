"""What single parts cost, away from the model: batches a second of the loader, and one sample a position two ways.

    python -m benchmarks.parts --corpus data/wiki

The loader is asked for training batches at several shapes, one thread, from the memory map of a real corpus. The
samples are drawn from random logits (rows x N positions x V words): by the inverse cumulative softmax at one uniform a
position, as `vocabulary_logits.sample` does, and by a Gumbel draw for every word. Both in turn, medians and ranges.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.kernels.vocabulary_logits import sample
from fast_electra.settings.config import DataConfig

SHAPES = ((64, 64), (128, 128), (256, 512))
POSITIONS, VOCAB_SIZES = 616, (16_000, 32_000)
NEVER = torch.arange(5)  # special tokens


def seconds(action: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, sorted, after one to warm up."""
    action(0)
    measured = []
    for number in range(1, repeats + 1):
        start = time.perf_counter()
        action(number)
        measured.append(time.perf_counter() - start)
    return sorted(measured)


def loader(corpus: str, repeats: int) -> list[dict[str, object]]:
    """Batches a second at each shape, median with the slowest and fastest."""
    opened, rows = Corpus.open(corpus), []
    for batch_rows, length in SHAPES:
        batches = Batches([(opened, 1.0)], DataConfig(sequence_length=length, held_out_rows=8), seed=0)

        def make(number: int, batches: Batches = batches, size: int = batch_rows) -> object:
            return batches.training(number * size, size)

        each = seconds(make, repeats)
        rows.append(
            {
                "batch": f"{batch_rows} x {length}",
                "batches_per_second": 1 / median(each),
                "range": [1 / each[-1], 1 / each[0]],
                "tokens_per_second": batch_rows * length / median(each),
            }
        )
    return rows


def sampling(repeats: int) -> list[dict[str, object]]:
    """Milliseconds to sample POSITIONS positions, the two ways in turn."""
    rows = []
    for vocab_size in VOCAB_SIZES:
        logits = torch.randn(POSITIONS, vocab_size).bfloat16()
        uniforms = torch.from_numpy(np.random.default_rng(0).random(POSITIONS))

        def inverse(_: int, logits: torch.Tensor = logits, uniforms: torch.Tensor = uniforms) -> object:
            return sample(logits, 1.5, uniforms, NEVER)

        def gumbel(_: int, logits: torch.Tensor = logits) -> object:
            return (logits.float() - 1.5 * torch.empty(logits.shape).exponential_().log_()).argmax(dim=-1)

        pairs = [(seconds(inverse, 1)[0], seconds(gumbel, 1)[0]) for _ in range(repeats)]
        rows.append(
            {
                "positions": POSITIONS,
                "vocab_size": vocab_size,
                "inverse_cumulative_ms": 1e3 * median(one for one, _ in pairs),
                "gumbel_ms": 1e3 * median(other for _, other in pairs),
                "gumbel_over_inverse": median(other / one for one, other in pairs),
            }
        )
    return rows


def main(arguments: Sequence[str]) -> int:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a folder made by launchers/prepare_corpus.py")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args(arguments)
    try:
        loaded = loader(given.corpus, given.repeats)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"loader": loaded, "sampling": sampling(given.repeats)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
