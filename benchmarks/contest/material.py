"""What cases are run on: a few rows of words, an auxiliary model with weights at random, its replacement paths.

The time of a step depends on none of them, so that words and weights are made up where none are named.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from benchmarks import cases
from benchmarks.cases import Case
from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.models.auxiliary import build_masked_lm
from fast_electra.pretraining.precompute import Precomputation
from fast_electra.replacements import replacement_store
from fast_electra.replacements.replacement_paths import TemperatureGrid
from fast_electra.settings.config import DataConfig

GRID = TemperatureGrid.covering(1, 4)


@dataclass
class RandomWords:
    """A corpus of words drawn at random, with what `Batches` asks of one."""

    tokenizer: PreTrainedTokenizerBase
    tokens: NDArray[np.uint32]
    path: str = "random words"
    tokenizer_fingerprint: str = "random words"
    fingerprint: str = "random words"
    document_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @property
    def num_tokens(self) -> int:
        """How many words there are."""
        return len(self.tokens)


def few_rows(case: Case, data: DataConfig, num_rows: int, corpus: str = "") -> Batches:
    """`num_rows` rows of the case's length, those held out among them: the corpus's first, or random words.

    Raises ValueError where the corpus has another vocabulary than the case.
    """
    num_tokens = num_rows * (case.sequence_length - 1)
    if corpus:
        opened = Corpus.open(corpus)
        few = dataclasses.replace(opened, tokens=opened.tokens[:num_tokens])
    else:
        drawn = np.random.default_rng(0).integers(len(cases.SPECIAL), case.vocab_size, num_tokens, dtype=np.uint32)
        few = cast(Corpus, RandomWords(cases.tokenizer(case.vocab_size), drawn))
    words = len(few.tokenizer)
    if words != case.vocab_size:
        raise ValueError(f"case {case.name!r}: corpus {corpus!r} has a vocabulary of {words}; name that number")
    return Batches([(few, 1.0)], data, cases.config(case).seed)


def write_auxiliary(case: Case, batches: Batches, folder: Path) -> None:
    """The recipe's auxiliary model with weights at random, as a folder that an existing one would be."""
    _, shape = cases.shapes(dataclasses.replace(case, objective="frozen"))
    assert shape is not None
    if not folder.exists():
        build_masked_lm(shape, "sdpa", torch.bfloat16).save_pretrained(folder)
        batches.corpora[0].tokenizer.save_pretrained(folder)


def store_paths(folder: Path, work: Precomputation) -> dict[str, Any]:
    """Compute and store the paths of all rows; returns the store's manifest."""
    for shard in replacement_store.begin(folder, work.provenance):
        replacement_store.write_shard(folder, work.provenance, shard, work.shard(shard))
    return replacement_store.finish(folder, work.provenance)
