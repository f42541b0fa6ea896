"""The text of a run's rows by their numbers, as spikes.jsonl and messages name them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.settings import config_file
from fast_electra.settings.require import require


def texts(folder: str, numbers: list[int]) -> Iterator[tuple[int, str]]:
    """(number, text) of rows of the run in `folder`.

    Raises ValueError when its corpus is gone, and after all others for a row that it has not.
    """
    config = config_file.load(Path(folder) / "config.json")
    named = config.corpora or [(str(Path(config.output) / "corpus"), 1.0)]
    opened = [(Corpus.open(path, tokenizer=config.tokenizer or None), weight) for path, weight in named]
    batches = Batches(opened, config.data, config.seed)
    there = [number for number in numbers if 0 <= number < batches.num_rows]
    rows = batches.tokens(np.array(there, dtype=np.int64))
    tokenizer = opened[0][0].tokenizer
    yield from zip(there, (tokenizer.decode(row, skip_special_tokens=True) for row in rows), strict=True)
    for number in numbers:
        require(number in there, "row", number, f"the corpus has rows 0 to {batches.num_rows - 1}")
