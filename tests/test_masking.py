import numpy as np
import pytest
from scipy import stats

from fast_electra.batching.masking import masked_positions

SPECIAL = [0, 1, 2, 3, 4]


def rows(count, length=64, seed=0):
    ids = np.random.default_rng(seed).integers(5, 1000, size=(count, length))
    ids[:, 0] = 2
    ids[:, 20] = 3
    return ids


def test_every_row_has_exactly_n_sorted_distinct_positions():
    positions = masked_positions(rows(50), np.arange(50), 10, 0, SPECIAL)
    assert positions.shape == (50, 10)
    assert (np.diff(positions, axis=1) > 0).all()


def test_special_tokens_are_never_masked():
    ids = rows(200)
    positions = masked_positions(ids, np.arange(200), 30, 0, SPECIAL)
    assert not np.isin(np.take_along_axis(ids, positions, axis=1), SPECIAL).any()


def test_positions_are_uniform_among_ordinary_tokens():
    positions = masked_positions(rows(4000), np.arange(4000), 9, 3, SPECIAL)
    counts = np.bincount(positions.ravel(), minlength=64)
    ordinary = np.delete(counts, [0, 20])
    assert counts[0] == counts[20] == 0
    assert stats.chisquare(ordinary).pvalue > 1e-3


def test_a_rows_positions_do_not_depend_on_the_batch_it_is_in():
    ids, keys = rows(32), np.arange(100, 132)
    whole = masked_positions(ids, keys, 9, 0, SPECIAL)
    parts = np.concatenate([masked_positions(ids[i : i + 5], keys[i : i + 5], 9, 0, SPECIAL) for i in range(0, 32, 5)])
    assert (whole == parts).all()


def test_another_key_or_seed_masks_elsewhere():
    ids = rows(1).repeat(3, axis=0)
    first, second, _ = masked_positions(ids, np.arange(3), 9, 0, SPECIAL)
    assert (first != second).any()
    assert (masked_positions(ids, np.arange(3), 9, 1, SPECIAL)[0] != first).any()


def test_a_row_with_too_few_ordinary_tokens_is_refused_by_number():
    ids = rows(3)
    ids[1] = 3
    ids[1, :4] = 9
    with pytest.raises(ValueError, match=r"row 41 has 4 ordinary tokens, fewer than the 9"):
        masked_positions(ids, np.arange(40, 43), 9, 0, SPECIAL)


def test_unknown_tokens_are_masked_only_in_a_row_that_has_too_few_others():
    ids = rows(3)
    ids[1, 4:] = ids[2, 30:40] = 1
    positions = masked_positions(ids, np.arange(3), 9, 0, SPECIAL, unknown_id=1)
    assert (positions[[0, 2]] == masked_positions(ids[[0, 2]], np.array([0, 2]), 9, 0, SPECIAL)).all()
    assert (ids[1, positions[1]] == 1).any() and not np.isin(ids[1, positions[1]], [0, 2, 3, 4]).any()
    ids[1, 1:60] = 3
    with pytest.raises(ValueError, match=r"row 1 has 4 ordinary tokens"):
        masked_positions(ids, np.arange(3), 9, 0, SPECIAL, unknown_id=1)
