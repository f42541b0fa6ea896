"""Which positions of a row are masked: a fixed number N per row, a pure function of (seed, row key).

N slots per row instead of a coin per token (as google-research/electra's `mask` does) make every count equal by
construction: shapes are static, and a mean over a micro-batch is the same on every process. A row key names one view
of one row, `draw * num_rows + row`, so that each pass over a corpus masks afresh and any view can be made again.
"""

import numpy as np
from numpy.typing import NDArray

from fast_electra.batching.randomness import Stream, bits

_NEVER = np.uint64(2**64 - 1)


def masked_positions(
    input_ids: NDArray[np.integer],
    row_keys: NDArray[np.int64],
    num_masked: int,
    seed: int,
    special_ids: list[int],
    unknown_id: int | None = None,
) -> NDArray[np.int64]:
    """The sorted masked positions (B, N) of rows `input_ids` (B, T), uniform among tokens that are not special.

    Each position gets a hash of (seed, row key, position), and the N smallest win. A row with fewer than N ordinary
    tokens, in a script that the vocabulary lacks, has its unknown ones masked as well; raises ValueError when they do
    not suffice either.
    """
    score = bits(seed, Stream.MASK, row_keys[:, None], np.arange(input_ids.shape[1])[None, :])
    special = np.isin(input_ids, special_ids)
    short = input_ids.shape[1] - special.sum(axis=1) < num_masked
    special[short] &= input_ids[short] != unknown_id
    ordinary = input_ids.shape[1] - special.sum(axis=1)
    if (ordinary < num_masked).any():
        row = int(np.argmax(ordinary < num_masked))
        raise ValueError(
            f"row {int(row_keys[row])} has {int(ordinary[row])} ordinary tokens, fewer than the {num_masked} positions "
            "to mask; lower data.mask_rate or clean the corpus of near-empty documents"
        )
    score[special] = _NEVER
    return np.sort(np.argpartition(score, num_masked - 1, axis=1)[:, :num_masked], axis=1).astype(np.int64)
