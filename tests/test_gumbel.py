"""Noise of a position: Gumbel, independent, and a function of its keys alone."""

import numpy as np
import torch
from scipy import stats

from fast_electra.replacements import gumbel
from fast_electra.replacements.gumbel import (
    ARRIVALS,
    NoiseKeys,
    arrival_tokens,
    draw_arrivals,
    gumbel_noise,
    noise_state,
)


def keys(num_positions, seed=0):
    return NoiseKeys(seed, np.arange(num_positions) // 7, np.arange(num_positions) % 7)


def test_noise_is_a_function_of_seed_row_key_slot_and_word_alone():
    whole = gumbel_noise(keys(40), 300)
    order = np.random.default_rng(0).permutation(40)[:9]
    some = gumbel_noise(NoiseKeys(0, keys(40).row_keys[order], keys(40).slots[order]), 300)
    torch.testing.assert_close(some, whole[order], rtol=0, atol=0)
    assert len(whole.unique()) > 0.999 * whole.numel(), "two words or positions share their noise"
    assert not torch.equal(gumbel_noise(keys(40, seed=1), 300), whole)


def test_noise_is_gumbel_whether_a_word_is_an_arrival_or_not():
    for vocab_size in (3, 100, 3000):
        noise = gumbel_noise(keys(150_000 // vocab_size), vocab_size)
        assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
        for word in (0, vocab_size - 1):
            assert stats.kstest(noise[:, word].numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
        # The largest of V independent Gumbel variables is Gumbel again, moved by log V; the second one is known too.
        top = noise.topk(2, dim=1).values.double() - np.log(vocab_size)
        if vocab_size == 3000:
            assert stats.kstest(top[:, 0].numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
            assert stats.kstest((-top[:, 1]).exp().numpy(), stats.gamma(2).cdf).pvalue > 1e-3


def test_noise_of_different_words_positions_and_rows_is_independent():
    noise = gumbel_noise(keys(7 * 3000), 40).double().view(3000, 7, 40)
    pairs = [
        (noise[..., 0], noise[..., 1]),
        (noise[..., 5], noise[..., 39]),
        (noise[:, 0], noise[:, 1]),
        (noise[:-1], noise[1:]),
    ]
    for one, other in pairs:
        assert stats.spearmanr(one.flatten(), other.flatten()).pvalue > 1e-4


def test_the_noise_of_a_word_that_is_no_arrival_is_independent_of_the_arrivals():
    state = noise_state(keys(3000), "cpu")
    tokens, times = draw_arrivals(state, 32000)
    gaps = times.diff(dim=1, prepend=torch.zeros(len(state), 1))
    fresh = gumbel.tail_noise(state[:, None], torch.zeros(len(state), 1), torch.arange(2 * ARRIVALS)).double()
    for of_arrivals in (gaps, tokens.double()):
        for first in (0, ARRIVALS):
            ranks = [
                column.argsort(0).argsort(0).double() for column in (of_arrivals, fresh[:, first : first + ARRIVALS])
            ]
            correlation = torch.corrcoef(torch.cat(ranks, dim=1).T)[:ARRIVALS, ARRIVALS:]
            assert correlation.abs().max() < 0.12, "six standard deviations"


def test_arrivals_are_the_largest_noises_in_descending_order():
    vocab_size = 5000
    tokens, times = draw_arrivals(noise_state(keys(30), "cpu"), vocab_size)
    noise = gumbel_noise(keys(30), vocab_size)
    assert (times.diff() > 0).all()
    for position in range(30):
        distinct = list(dict.fromkeys(tokens[position].tolist()))
        assert noise[position].topk(len(distinct)).indices.tolist() == distinct


def test_the_host_finds_the_word_of_an_arrival_from_its_rank():
    for vocab_size in (2, 1000, 32000):
        tokens, _ = draw_arrivals(noise_state(keys(20), "cpu"), vocab_size)
        k = keys(20)
        ranks = np.arange(ARRIVALS)
        host = arrival_tokens(NoiseKeys(k.seed, k.row_keys[:, None], k.slots[:, None]), ranks, vocab_size)
        np.testing.assert_array_equal(host, tokens.numpy())
        assert host.min() >= 0
        assert host.max() < vocab_size
