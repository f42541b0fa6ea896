"""Gumbel noise that belongs to a position: a function of (seed, row key, slot, word), drawn only where it can matter.

One vector g of V noises fixes what a masked position becomes at every temperature (`argmax_v l_v + T g_v`; Gumbel,
1954; Maddison, Tarlow, Minka, "A* sampling", NeurIPS 2014), but V = 32,000 draws a position cost more than they need.
E_v = exp(-g_v) are independent Exp(1): the first arrival times of V Poisson processes of rate 1, hence the arrivals of
a single process of rate V whose words are uniform. Its first 128 arrivals are drawn: the largest noises, in order.
Every other word has, since the exponential has no memory, E_v = the last arrival's time + a fresh Exp(1); each of
these is a hash of its own, so that a few words' noise can be had without the others'. Nothing here is approximate.

Shapes: P positions, V words of the vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fast_electra.batching.randomness import Stream, bits, mixed, mixed_uniform, state_on

# These two, the hash and its keys are part of the stored format: change one and raise replacement_store.FORMAT.
ARRIVALS = 128
# Arrival times are summed as integers of this unit: the sum does not depend on the order in which a device adds.
_TIME_UNIT = 2.0**-40


class NoiseKeys(NamedTuple):
    """What the noise of P positions is a function of: a seed, and each position's row key and slot in its row."""

    seed: int
    row_keys: NDArray[np.int64]
    slots: NDArray[np.int64]


def noise_state(keys: NoiseKeys, device: torch.device | str) -> Tensor:
    """`bits(seed, NOISE, row key, slot)` (P,): the position's hash, to be mixed once more with each word's key."""
    return state_on(device, keys.seed, Stream.NOISE, keys.row_keys, keys.slots)


def draw_arrivals(state: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The first ARRIVALS words (P, ARRIVALS) to arrive, a word possibly more than once, and their times, ascending."""
    ranks = torch.arange(ARRIVALS, device=state.device)
    gaps = (_exponential(state[:, None], ranks) / _TIME_UNIT).long() + 1
    tokens = (mixed(state[:, None], ranks + ARRIVALS).double() * 2.0**-53 * vocab_size).long()
    return tokens, gaps.cumsum(1).double() * (_TIME_UNIT / vocab_size)


def tail_noise(state: Tensor, last_time: Tensor, tokens: Tensor) -> Tensor:
    """Noise, float32, of words that are no arrivals: their exponential is the last arrival's time plus a fresh one."""
    return -torch.log(last_time + _exponential(state, tokens + 2 * ARRIVALS)).float()


def gumbel_noise(keys: NoiseKeys, vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """The whole noise (P, V), float32, of which `replacement_paths` draws what it needs: for tests."""
    state = noise_state(keys, device)
    tokens, times = draw_arrivals(state, vocab_size)
    noise = tail_noise(state[:, None], times[:, -1:], torch.arange(vocab_size, device=device))
    # The first arrival of a word is its noise, and larger than any later one and than the tail's.
    return noise.scatter_reduce(1, tokens, -times.log().float(), "amax")


def arrival_tokens(keys: NoiseKeys, ranks: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """The words that arrive at `ranks`, on the host: the noise is the dictionary by which a store shortens tokens."""
    drawn = bits(keys.seed, Stream.NOISE, keys.row_keys, keys.slots, ARRIVALS + np.asarray(ranks)) >> np.uint64(11)
    return (drawn.astype(np.float64) * 2.0**-53 * vocab_size).astype(np.int64)


def _exponential(state: Tensor, key: Tensor) -> Tensor:
    return -torch.log(mixed_uniform(state, key))
