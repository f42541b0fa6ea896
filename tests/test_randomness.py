import numpy as np
import pytest
import torch
from scipy import stats

from fast_electra.batching import randomness
from fast_electra.batching.randomness import Stream, bits, mixed, mixed_uniform, permute, state_on, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 4096])
def test_a_permutation_reaches_every_item_once(size):
    assert sorted(permute(5, 2, np.arange(size), size)) == list(range(size))


def test_permutations_differ_by_seed_and_epoch():
    items = np.arange(1000)
    orders = [tuple(permute(seed, epoch, items, 1000)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3


def test_neighbours_do_not_stay_neighbours():
    order = permute(0, 0, np.arange(10_000), 10_000)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_uniforms_are_uniform_within_and_across_keys():
    table = uniform(7, Stream.SAMPLE, np.arange(400)[:, None], np.arange(100)[None, :])
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02
    assert 0 < table.min() < table.max() < 1


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**64 - 1])
def test_the_hash_in_torch_is_the_hash_in_numpy(seed):
    rows, words = np.arange(50)[:, None] * 2**33, np.arange(30)
    state, key = state_on("cpu", seed, Stream.NOISE, rows), torch.from_numpy(words)
    upper = bits(seed, Stream.NOISE, rows, words) >> np.uint64(11)
    np.testing.assert_array_equal(mixed(state, key).numpy(), upper.astype(np.int64))
    np.testing.assert_array_equal(mixed_uniform(state, key).numpy(), uniform(seed, Stream.NOISE, rows, words))


def test_streams_and_seeds_are_independent():
    keys = np.arange(10_000)
    first = uniform(0, Stream.MASK, keys)
    for other in (uniform(0, Stream.SAMPLE, keys), uniform(1, Stream.MASK, keys)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_the_numbers_never_change():
    """Masks and samples of stored replacement paths depend on these bits: a change here breaks every one of them."""
    assert [int(x) for x in bits(0, Stream.MASK, [0, 1], 2)] == [4011210338516677561, 15724360586833778554]


def test_the_hash_is_splitmix_in_plain_integers():
    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    state = mix((12 + gamma * Stream.SAMPLE) % 2**64)
    for key in (34, 56):
        state = mix(((state ^ key) + gamma) % 2**64)
    assert int(bits(12, Stream.SAMPLE, 34, 56)[0]) == state


def test_the_uppermost_number_stays_below_one(monkeypatch):
    """A sampler that finds it among cumulative weights would fall off their end."""
    uppermost = np.uint64(2**64 - 1)
    monkeypatch.setattr(randomness, "bits", lambda *_: np.array([uppermost]))
    monkeypatch.setattr(randomness, "mixed", lambda *_: torch.tensor([2**53 - 1]))
    assert (2.0**53 - 1 + 0.5) * 2.0**-53 == 1.0, "what is guarded against"
    highest = float(uniform(0, Stream.SAMPLE, 1)[0])
    assert 1 - 1e-15 < highest < 1
    assert float(mixed_uniform(torch.tensor(0), torch.tensor(0))[0]) == highest
