"""One judge for all arms: what a trained model makes of the same held-out rows, masks and samples, and of BLiMP.

The masked positions and the samples of a fixed masked LM at T = 1 are a function of (JUDGE_SEED, row), whatever seed a
run had, so that the figures of all runs on a corpus compare. A discriminator is judged by its ROC-AUC and loss on
them, beside the majority-class floor; a masked LM, which has no replaced-token head, by the share of the same masked
tokens that it predicts.

    python -m benchmarks.judge runs/study/2x96/frozen-0 --auxiliary runs/study/2x96/judge-100/export --blimp data/blimp

writes scores.json into the run's folder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.corpora.corpus import Corpus
from fast_electra.evaluation import blimp, trained
from fast_electra.methods import metrics, objectives
from fast_electra.models import auxiliary
from fast_electra.settings import config_file
from fast_electra.settings.config import Config

JUDGE_SEED = 1_000_000
BATCH_ROWS = 64


class Judge:
    """Held-out rows and a fixed masked LM to sample from; `predict` is as `auxiliary.Auxiliary` takes it.

    `weights` is the masked LM's fingerprint. Nothing is sampled for a masked LM.
    """

    def __init__(self, batches: Batches, predict: Any, tokenizer: PreTrainedTokenizerBase, weights: str = "") -> None:
        self.batches, self.weights = batches, weights
        self.auxiliary = auxiliary.Auxiliary(predict, tokenizer, JUDGE_SEED)
        self.mask_id, self.pad_id = self.auxiliary.mask_id, self.auxiliary.pad_id

    @torch.no_grad()
    def discriminator(self, module: Any, batch_rows: int = BATCH_ROWS) -> dict[str, float]:
        """`metrics.rtd_report` of a ReplacedTokenDetection."""
        total: Tensor | None = None
        for batch in self._batches(batch_rows):
            corrupted = objectives.corrupt(batch, self.auxiliary.sample(batch, 1.0))
            logits = module(*corrupted)[1]
            counts = metrics.rtd_counts(logits, corrupted.labels, corrupted.input_ids != self.pad_id)
            total = counts if total is None else total + counts
        assert total is not None
        return metrics.rtd_report(total, self.batches.data.masked_share)

    @torch.no_grad()
    def masked_lm(self, module: Any, batch_rows: int = BATCH_ROWS) -> dict[str, float]:
        """`metrics.mlm_report` of a MaskedLMLoss."""
        total = torch.zeros(3, dtype=torch.float64)
        for batch in self._batches(batch_rows):
            inputs = objectives.masked_lm_inputs(batch, self.mask_id)
            total += module(*inputs)[2]
        return metrics.mlm_report(total)

    def _batches(self, batch_rows: int) -> Any:
        for first in range(0, self.batches.num_held_out, batch_rows):
            count = min(batch_rows, self.batches.num_held_out - first)
            yield MaskedBatch(*self.batches.held_out(first, count))


def open_judge(run: Config, masked_lm: str) -> Judge:
    """The judge of runs on this run's corpora and rows, without a model to sample from where none is named.

    Raises ValueError when the masked LM cannot serve them.
    """
    opened = [(Corpus.open(path, tokenizer=run.tokenizer or None), weight) for path, weight in run.corpora]
    tokenizer = opened[0][0].tokenizer
    batches = Batches(opened, run.data, JUDGE_SEED)
    if not masked_lm:
        return Judge(batches, None, tokenizer)
    model = auxiliary.load(masked_lm, tokenizer, run.data.sequence_length, torch.float32)
    return Judge(batches, auxiliary.MaskedLM(model), tokenizer, auxiliary.weights_fingerprint(model))


def scores(run: Path, masked_lm: str, pairs: Sequence[blimp.Pair], second: str = "") -> dict[str, Any]:
    """The judge's figures and BLiMP's of a finished run's export, in float32.

    `second` names another masked LM, by whose samples a discriminator is judged once more.
    """
    config = config_file.load(run / "config.json")
    model = trained.open_model(str(run / "export"), torch.float32)
    if model.kind == "discriminator" and not masked_lm:
        raise ValueError(f"{run} is a discriminator: name the masked LM that samples for it with --auxiliary")
    judge = open_judge(config, masked_lm)
    judged = judge.masked_lm if model.kind == "masked_lm" else judge.discriminator
    found = {"kind": model.kind, "judge": masked_lm, "judge_weights": judge.weights, "judged": judged(model.module)}
    if second:
        again = open_judge(config, second)
        found["second"] = {"judge_weights": again.weights, **again.discriminator(model.module)}
    return found | {"blimp": trained.blimp_accuracy(model, pairs) if pairs else None}


def main(arguments: Sequence[str]) -> int:
    """Write RUN/scores.json; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--auxiliary", default="", help="the fixed masked LM that samples for a discriminator: a folder"
    )
    parser.add_argument("--second", default="", help="another masked LM to judge a discriminator by: a folder")
    parser.add_argument("--blimp", default="", help="folder of BLiMP's files; empty for none")
    parser.add_argument("--pairs", type=int, default=0, help="the first so many pairs of each paradigm (default: all)")
    given = parser.parse_args(arguments)
    try:
        pairs = blimp.load(given.blimp, given.pairs) if given.blimp else []
        found = scores(given.run, given.auxiliary, pairs, given.second)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    partial = given.run / "scores.json.partial"
    partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    partial.replace(given.run / "scores.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
