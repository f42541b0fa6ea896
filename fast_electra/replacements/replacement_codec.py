"""Rows of replacement paths as bytes: small, and read at one temperature for a whole batch at once.

One row of N masked positions, whose paths have E entries, X of them with the token spelled out, is

| bytes       | what                                                                                              |
|-------------|---------------------------------------------------------------------------------------------------|
| ceil(N / 2) | entries of each position, 4 bits, the earlier position low; 15 says: see the next line             |
| 2 per 15    | entries less one of those positions, uint16                                                       |
| E           | code of each entry: below A the token's rank among the arrivals of the position's own noise       |
|             | (gumbel.py), else A + the upper bits of the token                                                 |
| w (E - N)   | level at which each entry but a position's first begins; w = 1 up to 256 levels, else 2           |
| s X         | the lower 8 s bits of the spelled-out tokens; s = 1 up to 61,440 words, else 2                    |

little-endian, A = min(128, 256 - words / 256^s): 128 up to 32,768 words. Positions are not stored, they follow from
seed and row key. The noise is the dictionary: what wins at a high temperature is nearly always an early arrival, whose
rank is one byte, and the word is one hash away. Measured on held-out logits (bf16) of a small context-window model of
Wikipedia, as they are (24 % accuracy) and doubled; 32,000 words, 77 positions in 512 tokens, T from 1 to 4:

| levels | bytes a position | bytes a token of corpus | with tokens and levels as plain uint16 |
|--------|------------------|-------------------------|----------------------------------------|
| 49,153 | 5.9 and 7.7      | 0.89 and 1.15           | 1.13 and 1.35                          |
| 193    | 4.6 and 6.0      | 0.70 and 0.91           |                                        |
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast_electra.replacements.gumbel import ARRIVALS, NoiseKeys, arrival_tokens
from fast_electra.replacements.replacement_paths import Paths

_ESCAPE = 15

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowCodec:
    """How rows of `masked_per_row` positions are written, for a vocabulary and a number of temperature levels."""

    masked_per_row: int
    vocab_size: int
    num_levels: int

    @property
    def level_bytes(self) -> int:
        return 1 if self.num_levels <= 256 else 2

    @property
    def tail_bytes(self) -> int:
        return 1 if self.vocab_size <= 256 * 240 else 2

    @property
    def arrival_codes(self) -> int:
        return min(ARRIVALS, 256 + -self.vocab_size // 256**self.tail_bytes)

    def encode(self, paths: Paths) -> tuple[Bytes, Ints]:
        """The bytes of R rows, whose R * N paths come row after row, and the size (R,) of each."""
        counts, levels, tokens, ranks = (field.cpu().numpy() for field in paths)
        table = counts.reshape(-1, self.masked_per_row)
        spelled = (ranks < 0) | (ranks >= self.arrival_codes)
        codes = np.where(spelled, self.arrival_codes + (tokens >> 8 * self.tail_bytes), ranks).astype(np.uint8)
        later = np.ones(len(levels), dtype=bool)
        later[counts.cumsum() - counts] = False
        escaped = table >= _ESCAPE
        entries = table.sum(1)
        row_of_entry = np.repeat(np.arange(len(table)), entries)
        sections = [
            (self._pack_counts(table), np.full(len(table), (self.masked_per_row + 1) // 2)),
            (_narrow(table[escaped] - 1, 2), 2 * escaped.sum(1)),
            (codes, entries),
            (_narrow(levels[later], self.level_bytes), self.level_bytes * (entries - self.masked_per_row)),
            (
                _narrow(tokens[spelled], self.tail_bytes),
                self.tail_bytes * np.bincount(row_of_entry[spelled], minlength=len(table)),
            ),
        ]
        sizes = np.stack([size for _, size in sections], axis=1)
        starts = sizes.cumsum().reshape(sizes.shape) - sizes
        out = np.empty(sizes.sum(), dtype=np.uint8)
        for column, (data, _) in enumerate(sections):
            out[_spans(starts[:, column], sizes[:, column])] = data
        return out, sizes.sum(1)

    def counts(self, data: Bytes, starts: Ints) -> Ints:
        """The number of entries (B, N) of each position of the rows that begin at `starts` (B,) in `data`."""
        packed = data[starts[:, None] + np.arange((self.masked_per_row + 1) // 2)]
        counts = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(starts), -1)[:, : self.masked_per_row]
        counts = counts.astype(np.int64)
        escaped = counts == _ESCAPE
        if escaped.any():
            rank = escaped.cumsum(1) - escaped
            at = (starts[:, None] + packed.shape[1] + 2 * rank)[escaped]
            counts[escaped] = _wide(data, at, 2) + 1
        return counts

    def tokens_at(self, data: Bytes, starts: Ints, seed: int, row_keys: Ints, level: int) -> Ints:
        """The tokens (B, N) at one level of the rows `row_keys` (B,), which begin at `starts` (B,) in `data`."""
        counts = self.counts(data, starts)
        ends = counts.cumsum(1)
        entries = ends[:, -1]
        codes_at = starts + (self.masked_per_row + 1) // 2 + 2 * (counts >= _ESCAPE).sum(1)
        levels_at = codes_at + entries
        tails_at = levels_at + self.level_bytes * (entries - self.masked_per_row)

        # A position's path has one level fewer than entries; those it has passed are the steps to the entry that holds.
        later = (counts - 1).ravel()
        at = _spans(levels_at, self.level_bytes * (entries - self.masked_per_row))[:: self.level_bytes]
        passed = np.repeat(np.arange(later.size), later)[_wide(data, at, self.level_bytes) <= level]
        chosen = ends - counts + np.bincount(passed, minlength=later.size).reshape(counts.shape)

        codes = data[codes_at[:, None] + chosen].astype(np.int64)
        spelled = codes >= self.arrival_codes
        before = np.concatenate([[0], (data[_spans(codes_at, entries)] >= self.arrival_codes).cumsum()])
        row_start = (entries.cumsum() - entries)[:, None]
        tail_rank = before[row_start + chosen] - before[row_start]
        row, slot = spelled.nonzero()
        tail = _wide(data, tails_at[row] + self.tail_bytes * tail_rank[row, slot], self.tail_bytes)
        tokens = np.empty_like(codes)
        tokens[row, slot] = ((codes[row, slot] - self.arrival_codes) << 8 * self.tail_bytes) + tail
        row, slot = (~spelled).nonzero()
        tokens[row, slot] = arrival_tokens(NoiseKeys(seed, row_keys[row], slot), codes[row, slot], self.vocab_size)
        return tokens

    def _pack_counts(self, counts: Ints) -> Bytes:
        nibbles = np.minimum(counts, _ESCAPE).astype(np.uint8)
        nibbles = np.pad(nibbles, ((0, 0), (0, self.masked_per_row % 2)))
        return (nibbles[:, ::2] + 16 * nibbles[:, 1::2]).astype(np.uint8).ravel()


def _spans(starts: Ints, sizes: Ints) -> Ints:
    """The indices start, start + 1, ..., of `size` each, one span after the other."""
    shifts = np.repeat(starts - (sizes.cumsum() - sizes), sizes)
    return np.asarray(shifts + np.arange(len(shifts)), dtype=np.int64)


def _narrow(values: Ints, width: int) -> Bytes:
    """The `width` low bytes of each value, little-endian."""
    return values.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].ravel()


def _wide(data: Bytes, at: Ints, width: int) -> Ints:
    """The little-endian integers of `width` bytes that begin at `at`; aligned to nothing."""
    values = data[at].astype(np.int64)
    for i in range(1, width):
        values |= data[at + i].astype(np.int64) << 8 * i
    return values
