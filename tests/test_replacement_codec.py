"""Rows as bytes: what is written is read back at every level, in the bytes that the layout promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra.replacements.gumbel import ARRIVALS, NoiseKeys, arrival_tokens
from fast_electra.replacements.replacement_codec import RowCodec
from fast_electra.replacements.replacement_paths import Paths, tokens_at

SEED = 11


def random_paths(codec, row_keys, seed, most_entries):
    """Paths of any shape, arrivals or not; the token of an arrival is what the noise says."""
    rng = np.random.default_rng(seed)
    n = codec.masked_per_row
    counts = rng.integers(1, most_entries + 1, len(row_keys) * n)
    levels = [np.concatenate([[0], 1 + np.sort(rng.permutation(codec.num_levels - 1)[: c - 1])]) for c in counts]
    position = np.repeat(np.arange(len(counts)), counts)
    ranks = np.where(rng.random(len(position)) < 0.6, rng.integers(0, ARRIVALS, len(position)), -1)
    drawn = arrival_tokens(
        NoiseKeys(SEED, row_keys[position // n], position % n), np.maximum(ranks, 0), codec.vocab_size
    )
    tokens = np.where(ranks < 0, rng.integers(0, codec.vocab_size, len(position)), drawn)
    return Paths(*(torch.from_numpy(field) for field in (counts, np.concatenate(levels), tokens, ranks)))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([2, 1000, 30522, 32768, 50368, 61440, 61441, 250_002]),
    st.sampled_from([120, 256, 257, 65536]),
    st.sampled_from([1, 3, 14, 15, 16, 100]),
    st.integers(0, 10**6),
)
def test_rows_are_read_back_at_every_level_from_anywhere(masked_per_row, vocab_size, num_levels, most_entries, seed):
    codec = RowCodec(masked_per_row, vocab_size, num_levels)
    row_keys = np.array([5, 3, 10**10, 0])
    paths = random_paths(codec, row_keys, seed, most_entries)
    data, sizes = codec.encode(paths)
    assert sizes.sum() == len(data)
    data = np.concatenate([np.full(3, 255, dtype=np.uint8), data])
    order = np.array([2, 0, 3, 3])
    starts = (3 + sizes.cumsum() - sizes)[order]
    levels = {0, 1, num_levels - 1, *paths.levels.tolist()[:40], *(k - 1 for k in paths.levels.tolist()[:40] if k)}
    for level in levels:
        expected = tokens_at(paths, level).numpy().reshape(4, masked_per_row)
        np.testing.assert_array_equal(codec.tokens_at(data, starts, SEED, row_keys[order], level), expected[order])
    np.testing.assert_array_equal(codec.counts(data, starts), paths.counts.numpy().reshape(4, -1)[order])


@pytest.mark.parametrize(
    ("vocab_size", "codes"),
    [(2, 128), (32768, 128), (32769, 127), (50368, 59), (61440, 16), (61441, 128), (250_002, 128)],
)
def test_as_many_arrivals_have_a_code_as_the_vocabulary_leaves_room_for(vocab_size, codes):
    codec = RowCodec(3, vocab_size, 65536)
    assert codec.arrival_codes == codes
    assert codes + (vocab_size - 1) // 256**codec.tail_bytes <= 255


def paths_of(counts, levels, tokens, ranks):
    return Paths(*(torch.tensor(field) for field in (counts, levels, tokens, ranks)))


@pytest.mark.parametrize(
    ("vocab_size", "num_levels", "arrival", "spelled", "level"),
    [(32000, 65536, 1, 2, 2), (32000, 193, 1, 2, 1), (50368, 65536, 1, 2, 2), (100_000, 65536, 1, 3, 2)],
)
def test_an_entry_takes_the_bytes_that_the_layout_says(vocab_size, num_levels, arrival, spelled, level):
    codec = RowCodec(3, vocab_size, num_levels)
    counts = 2
    _, sizes = codec.encode(paths_of([1, 1, 1], [0, 0, 0], [7, 7, 7], [0, 1, 2]))
    assert sizes.tolist() == [counts + 3 * arrival]
    _, sizes = codec.encode(paths_of([1, 2, 1], [0, 0, 9, 0], [7, 8, vocab_size - 1, 7], [0, -1, -1, 2]))
    assert sizes.tolist() == [counts + 2 * arrival + 2 * spelled + level]


def test_the_bytes_are_pinned():
    """Whoever changes this changes a format that folders on disk are in: raise replacement_store.FORMAT."""
    codec = RowCodec(3, 32000, 65536)
    data, _ = codec.encode(paths_of([1, 2, 1], [0, 0, 0x1234, 0], [7, 0x5678, 3, 0x0102], [5, -1, 17, -1]))
    assert data.tobytes().hex() == "2101" + "05d61181" + "3412" + "7802"
    tokens = codec.tokens_at(data, np.array([0]), SEED, np.array([4]), 0x1233)
    assert tokens[0, 1:].tolist() == [0x5678, 0x0102]
    assert arrival_tokens(NoiseKeys(SEED, np.array([4]), np.array([0])), [5], 32000).tolist() == [tokens[0, 0]]
    assert tokens[0, 0] == 30560
