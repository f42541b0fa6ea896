"""Replacement paths: at every level of the grid the argmax with the full noise, and no entry too many."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fast_electra.replacements import replacement_paths as replacements
from fast_electra.replacements.gumbel import NoiseKeys, gumbel_noise
from fast_electra.replacements.replacement_paths import (
    TemperatureGrid,
    paths_in_chunks,
    positions_per_chunk,
    replacement_paths,
    sample,
    tokens_at,
    upper_envelope,
)

KINDS = ("flat", "normal", "peaked", "tied", "holes", "bf16", "fp16")


def make_logits(kind, num_positions, vocab_size, seed=0):
    logits = torch.randn(num_positions, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "flat":
        return torch.zeros_like(logits)
    if kind == "peaked":
        logits[:, seed % vocab_size] += 40
    if kind == "tied":
        return logits.round()
    if kind == "holes":
        logits[:, torch.arange(vocab_size) % 3 != seed % 3] = -torch.inf
        logits[:, 0] = -1.0
    return logits.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32))


def make_keys(num_positions, seed=0):
    return NoiseKeys(seed, np.arange(num_positions) // 5 + 10**9, np.arange(num_positions) % 5)


def brute_force(logits, noise, grid):
    """The winner (P, levels) at every level, and how many entries (P,) a path needs for that."""
    winners = torch.stack([sample(logits, noise, grid.temperature(k)) for k in range(grid.num_levels)], dim=1)
    return winners, 1 + (winners.diff() != 0).sum(1)


def assert_equals_brute_force(paths, logits, noise, grid):
    winners, entries = brute_force(logits, noise, grid)
    assert paths.counts.tolist() == entries.tolist()
    replayed = torch.stack([tokens_at(paths, k) for k in range(grid.num_levels)], dim=1)
    assert torch.equal(replayed, winners)


ranges = st.sampled_from([(1.0, 4.0), (1.0, 2.0), (0.25, 1.5), (0.9, 1.1), (2.0, 2.0), (0.5, 40.0)])
shapes = st.tuples(st.integers(1, 6), st.sampled_from([2, 3, 17, 130, 900]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), shapes, st.integers(0, 10**6), ranges)
def test_the_replayed_token_is_the_argmax_with_the_same_noise_at_every_level(kind, shape, seed, span):
    logits, keys, grid = (
        make_logits(kind, *shape, seed),
        make_keys(shape[0], seed),
        TemperatureGrid.covering(*span, 256),
    )
    noise = gumbel_noise(keys, shape[1])
    assert_equals_brute_force(replacement_paths(logits, keys, grid), logits, noise, grid)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), shapes, st.integers(0, 10**6), ranges, st.sampled_from([1, 2, 16]))
def test_the_envelope_of_any_noise_also_with_exact_ties_is_the_brute_force_one(kind, shape, seed, span, steps):
    logits, grid = make_logits(kind, *shape, seed), TemperatureGrid.covering(*span, 256)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)).mul(steps).round() / steps
    assert_equals_brute_force(upper_envelope(logits, noise, grid), logits, noise, grid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_temperatures_replay_exactly_from_65536_levels(kind):
    logits, keys, grid = make_logits(kind, 12, 1000), make_keys(12), TemperatureGrid.covering(1, 4)
    noise, paths = gumbel_noise(keys, 1000), replacement_paths(logits, keys, grid)
    for temperature in np.random.default_rng(0).uniform(1, 4, 1000):
        level = grid.level(temperature)
        assert torch.equal(tokens_at(paths, level), sample(logits, noise, grid.temperature(level)))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_drawn_where_it_matters_gives_the_paths_of_the_whole_noise(kind):
    logits, keys, grid = make_logits(kind, 25, 8000), make_keys(25), TemperatureGrid.covering(1, 4)
    sparse = replacement_paths(logits, keys, grid)
    dense = upper_envelope(logits, gumbel_noise(keys, 8000), grid)
    assert all(torch.equal(a, b) for a, b in zip(sparse[:3], dense[:3], strict=True))


def test_few_words_get_a_noise_of_their_own(monkeypatch):
    drawn = []

    def counting(state, last_time, tokens):
        drawn.append(len(tokens))
        return tail_noise(state, last_time, tokens)

    tail_noise = replacements.tail_noise
    monkeypatch.setattr(replacements, "tail_noise", counting)
    replacement_paths(make_logits("bf16", 20, 32000), make_keys(20), TemperatureGrid.covering(1, 4))
    assert 0 < sum(drawn) < 20 * 320, "1 % of the vocabulary at most"


def test_paths_do_not_depend_on_which_positions_share_a_batch():
    logits, keys, grid = make_logits("bf16", 30, 500), make_keys(30), TemperatureGrid.covering(1, 4)
    whole = replacement_paths(logits, keys, grid)
    for i in (0, 7, 29):
        alone = replacement_paths(logits[i : i + 1], NoiseKeys(0, keys.row_keys[[i]], keys.slots[[i]]), grid)
        begin = int(whole.counts[:i].sum())
        for one, all_of_them in zip(alone[1:], whole[1:], strict=True):
            assert torch.equal(one, all_of_them[begin : begin + int(whole.counts[i])])


def test_the_lowest_token_wins_a_tie():
    logits, noise = torch.tensor([[1.0, 2.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5, 1.5]])
    grid = TemperatureGrid.covering(1, 4, 256)
    paths = upper_envelope(logits, noise, grid)
    assert paths.tokens.tolist() == [1, 3]
    # At T = 2 words 1, 2 and 3 all reach 3: the lowest keeps it, word 3 has it from the next level on.
    assert paths.levels.tolist() == [0, grid.level(2) + 1]
    # With the words in reverse order the newcomer is the lowest, and wins at T = 2 itself.
    turned = upper_envelope(logits.flip(1), noise.flip(1), grid)
    assert (turned.tokens.tolist(), turned.levels.tolist()) == ([1, 0], [0, grid.level(2)])


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0, 4.0])
@pytest.mark.parametrize("vocab_size", [12, 3000])
def test_tokens_follow_softmax_of_logits_over_t(temperature, vocab_size):
    row = make_logits("bf16", 1, vocab_size, seed=3)
    num_positions = 10_000
    grid = TemperatureGrid.covering(1, 4)
    paths = replacement_paths(row.expand(num_positions, -1), make_keys(num_positions, seed=8), grid)
    tokens = tokens_at(paths, grid.level(temperature))
    expected = (row[0].double() / grid.temperature(grid.level(temperature))).softmax(0)
    # The likeliest words one by one, the others in ten bins of neighbours.
    bins = torch.arange(vocab_size) * 10 // vocab_size + 12
    bins[expected.topk(12).indices] = torch.arange(12)
    observed = torch.bincount(bins[tokens], minlength=22).double()
    expected = torch.zeros(22, dtype=torch.float64).index_add(0, bins, expected) * num_positions
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_tokens_of_different_slots_and_rows_are_independent():
    row = torch.tensor([[2.0, 1.0, 0.0, 0.5]])
    num_rows, slots = 6000, 5
    paths = replacement_paths(
        row.expand(num_rows * slots, -1), make_keys(num_rows * slots), TemperatureGrid.covering(1, 4)
    )
    tokens = tokens_at(paths, 20_000).view(num_rows, slots)
    for one, other in ((tokens[:, 0], tokens[:, 1]), (tokens[:, 2], tokens[:, 4]), (tokens[:-1, 0], tokens[1:, 0])):
        table = torch.bincount(one * 4 + other, minlength=16).view(4, 4)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("row", [[float("nan")] * 5, [-float("inf")] * 5, [0.0, 1.0, float("inf"), 0.0, 1.0]])
def test_a_row_without_a_finite_winner_is_refused_by_its_number(row):
    logits = torch.zeros(3, 5)
    logits[1] = torch.tensor(row)
    grid = TemperatureGrid.covering(1, 4)
    with pytest.raises(ValueError, match=r"position 1 .*check the auxiliary model"):
        replacement_paths(logits, make_keys(3), grid)
    with pytest.raises(ValueError, match=r"position 1 .*check the auxiliary model"):
        upper_envelope(logits, torch.zeros(3, 5), grid)


def test_chunks_keep_the_logits_within_the_budget_and_change_nothing():
    hidden, weight, grid = torch.randn(23, 8), torch.randn(600, 8), TemperatureGrid.covering(1, 4)
    seen = []

    def head(chunk):
        # Row by row: a matrix product may round differently with the number of its rows.
        logits = torch.stack([weight @ row for row in chunk])
        seen.append(logits.numel() * 4)
        return logits

    mib = 5 * 600 * 4 / 2**20
    chunked = paths_in_chunks(hidden, head, 600, make_keys(23), grid, mib)
    assert max(seen) == 5 * 600 * 4
    whole = replacement_paths(head(hidden), make_keys(23), grid)
    assert all(torch.equal(a, b) for a, b in zip(chunked, whole, strict=True))
    with pytest.raises(ValueError, match=r"0.001 MiB do not hold the 600 logits .* at least 0.0029"):
        positions_per_chunk(600, 0.001)


def test_grid_covers_its_range_with_exact_temperatures():
    grid = TemperatureGrid.covering(1, 4)
    assert (grid.t_min, grid.t_max, grid.num_levels) == (1.0, 4.0, 3 * 2**14 + 1)
    assert TemperatureGrid.covering(1, 4, 256).num_levels == 193
    for t_min, t_max in ((0.3, 0.7), (1, 1), (0.9999, 3.1), (1, 64)):
        grid = TemperatureGrid.covering(t_min, t_max)
        assert grid.t_min <= t_min <= t_max <= grid.t_max
        assert grid.num_levels <= 2**16
        levels = np.linspace(0, grid.num_levels - 1, 100).astype(int)
        for level in levels.tolist():
            assert grid.level(grid.temperature(level)) == level
            assert float(np.float32(grid.temperature(level))) == grid.temperature(level)


def test_a_temperature_between_two_levels_is_snapped_to_the_nearer():
    grid = TemperatureGrid.covering(1, 4, 256)
    step = grid.temperature(1) - grid.temperature(0)
    assert grid.level(grid.temperature(9) + 0.49 * step) == 9
    assert grid.level(grid.temperature(9) + 0.51 * step) == 10


@pytest.mark.parametrize("temperature", [0.99, 4.01, float("nan")])
def test_a_temperature_outside_the_grid_is_refused(temperature):
    with pytest.raises(ValueError, match=rf"temperature {temperature} lies outside \[1.0, 4.0\].*wider range"):
        TemperatureGrid.covering(1, 4).level(temperature)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 2.0), "0 < T_min"),
        ((2.0, 1.0), "0 < T_min <= T_max"),
        ((1.0, float("inf")), "0 < T_min"),
        ((0.001, 4.0, 256), "raise T_min"),
        ((1.0, 2.0, 2**16 + 1), "16 bits"),
    ],
)
def test_an_impossible_grid_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TemperatureGrid.covering(*arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_paths():
    logits, keys, grid = make_logits("bf16", 200, 32000), make_keys(200), TemperatureGrid.covering(1, 4)
    on_host = replacement_paths(logits, keys, grid)
    on_device = replacement_paths(logits.cuda(), keys, grid)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_host, on_device, strict=True))
