"""Replacements drawn from a fixed statistic of the tokens: the baselines that ask no model at all.

`unigram` draws each replacement with the word's frequency in the corpus, `random` uniformly (random token
substitution). What a discriminator learns beyond them is what the auxiliary model's context is worth. A sample costs
one look-up in a table of V cumulative weights, at the same uniform per position that an auxiliary model's sample gets.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fast_electra.batching.batches import MaskedBatch
from fast_electra.batching.randomness import Stream, mixed_uniform, state_on

COUNTED_TOKENS, _BLOCK = 2**28, 2**22


def uniforms(batch: MaskedBatch, seed: int) -> Tensor:
    """Float64 numbers (B, N) in (0, 1), one per masked position, keyed by (seed, row key, position).

    The host hashes the rows, the device their positions: neither waits for the other.
    """
    rows = state_on(batch.positions.device, seed, Stream.SAMPLE, batch.rows.numpy())
    return mixed_uniform(rows[:, None], batch.positions)


def unigram(corpora: Sequence[tuple[NDArray[Any], float]], vocab_size: int) -> NDArray[np.float64]:
    """The share of each word (V,) in a mixture of token streams (num_tokens,) with weights.

    All tokens are counted up to `COUNTED_TOKENS` a stream (164 million a second on one core); of a longer one, blocks
    evenly spread over it.
    """
    share = np.zeros(vocab_size)
    for tokens, weight in corpora:
        starts = np.arange(0, len(tokens), _BLOCK)
        starts = starts[:: max(1, -(-len(tokens) // COUNTED_TOKENS))]
        counts = sum(np.bincount(tokens[start : start + _BLOCK], minlength=vocab_size) for start in starts)
        share += weight * counts / np.sum(counts)
    return share / share.sum()


class Statistic:
    """Samples words by `weights` (V,), whatever the context; special tokens never."""

    def __init__(self, weights: NDArray[np.float64], tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        ordinary = weights.copy()
        ordinary[list(tokenizer.all_special_ids)] = 0.0
        cumulative = torch.from_numpy(ordinary).cumsum(0)
        self.cumulative, self.seed = cumulative / cumulative[-1], seed
        self.pad_id = cast(int, tokenizer.pad_token_id)

    def sample(self, batch: MaskedBatch, temperature: float) -> Tensor:
        """A token (B, N) for each masked position; a statistic knows no temperature."""
        self.cumulative = self.cumulative.to(batch.input_ids.device)
        self.cumulative = self.cumulative.to(batch.positions.device)  # moves once
        return torch.searchsorted(self.cumulative, uniforms(batch, self.seed), right=True)
