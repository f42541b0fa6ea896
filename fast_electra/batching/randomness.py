"""Randomness as a function: every random choice is a hash of (seed, stream, keys), never of what ran before.

A run is then located by integers alone, and what a row looks like (its place in the order, its masked positions, the
uniform behind each sample) does not depend on the number of processes, the batch size or a resume. The hash is
SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), applied
once per key: a few vectorised integer operations, so that no generator has to be seeded for each row.
"""

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BELOW_ONE = 1.0 - 2.0**-53  # the uppermost of 2**53 numbers would round to 1


class Stream(IntEnum):
    """What a random number is for: two streams of one seed are independent."""

    ORDER = 1
    MASK = 2
    SAMPLE = 3
    NOISE = 4
    STEP = 5


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: Stream, *keys: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each combination of keys; the keys (integers) broadcast against each other."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray([seed % 2**64], dtype=np.uint64) + _GAMMA * np.uint64(int(stream)))
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GAMMA)
    return state


def uniform(seed: int, stream: Stream, *keys: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1), 53 bits each, one for each combination of keys."""
    return _unit((bits(seed, stream, *keys) >> np.uint64(11)).astype(np.float64))


def _unit(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle of each of 2**53 equal parts of (0, 1), by number."""
    return np.minimum((upper + 0.5) * 2.0**-53, _BELOW_ONE)


def state_on(device: torch.device | str, seed: int, stream: Stream, *keys: ArrayLike) -> Tensor:
    """`bits` of keys known on the host as int64 on a device, where `mixed` mixes more keys in; nothing waits for it."""
    return torch.from_numpy(bits(seed, stream, *keys).view(np.int64)).to(device, non_blocking=True)


def mixed(state: Tensor, key: Tensor) -> Tensor:
    """The upper 53 bits of `bits` with one key more than the state has: int64 wraps as uint64 does."""
    x = (state ^ key) - 0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    x = x ^ ((x >> 31) & (2**33 - 1))
    return (x >> 11) & (2**53 - 1)


def mixed_uniform(state: Tensor, key: Tensor) -> Tensor:
    """`uniform` with one key more than the state has, float64, bit for bit."""
    return ((mixed(state, key).double() + 0.5) * 2.0**-53).clamp(max=_BELOW_ONE)


def permute(seed: int, epoch: ArrayLike, index: ArrayLike, size: int) -> NDArray[np.int64]:
    """Where `index` (each in 0..size-1) goes in a pseudo-random permutation of `size` items keyed by (seed, epoch).

    A balanced Feistel network of four rounds on the next even number of bits, walked until it lands inside
    (cycle walking, Black and Rogaway, CT-RSA 2002): no table, so that an order of 10^9 rows costs no memory.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    epoch, value = np.broadcast_arrays(np.asarray(epoch), np.asarray(index))
    value = value.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & low
        for turn in range(4):
            left, right = right, left ^ (bits(seed, Stream.ORDER, epoch[outside], turn, right) & low)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)
