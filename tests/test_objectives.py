"""Objectives without a trained generator, and what a config may ask of any."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from fast_electra.batching.batches import MaskedBatch
from fast_electra.batching.randomness import Stream, uniform
from fast_electra.methods.objectives import Frozen, Mlm, corrupt
from fast_electra.methods.temperature import temperature
from fast_electra.models import statistic
from fast_electra.models.statistic import Statistic, uniforms, unigram
from fast_electra.settings import recipes
from fast_electra.settings.config import TemperatureConfig

VOCABULARY, SPECIAL, MASK = 20, [0, 1, 2, 3, 4], 4


class Tokenizer:
    """As much of a tokenizer as a statistic asks for."""

    all_special_ids, pad_token_id = SPECIAL, 0


class Recorder:
    """A sampler that notes the temperatures it is asked for."""

    pad_id = 0

    def __init__(self):
        self.asked = []

    def sample(self, batch, temperature):
        self.asked.append(temperature)
        return torch.full_like(batch.positions, 7)


def batch_of(rows, length=16, masked=4):
    generator = torch.Generator().manual_seed(rows)
    input_ids = torch.randint(len(SPECIAL), VOCABULARY, (rows, length), generator=generator)
    positions = torch.rand(rows, length, generator=generator).argsort(dim=1)[:, :masked].sort(dim=1).values
    return MaskedBatch(input_ids, positions, torch.arange(rows))


def frequencies(weights, rows=4000):
    samples = Statistic(weights, Tokenizer(), seed=1).sample(batch_of(rows), 1.0)
    return torch.bincount(samples.flatten(), minlength=VOCABULARY).numpy()


def expected(weights, total):
    ordinary = np.where(np.isin(np.arange(VOCABULARY), SPECIAL), 0, weights)
    return ordinary / ordinary.sum() * total


def test_a_samples_uniform_is_keyed_by_seed_row_and_position():
    batch = batch_of(6)
    expected = uniform(3, Stream.SAMPLE, batch.rows.numpy()[:, None], batch.positions.numpy())
    np.testing.assert_array_equal(uniforms(batch, 3).numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_is_corrupted_without_waiting_for_the_device():
    frozen = Frozen(Statistic(np.ones(VOCABULARY), Tokenizer(), seed=1), None, 0.25)
    batch = batch_of(8)
    expected = frozen.inputs(batch.to(torch.device("cuda")), 0.0)  # moves its table there
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = frozen.inputs(batch.pinned().to(torch.device("cuda")), 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.input_ids, expected.input_ids)


def test_random_replacements_are_uniform_over_ordinary_tokens():
    seen = frequencies(np.ones(VOCABULARY))
    assert seen[SPECIAL].sum() == 0
    assert chisquare(seen[5:]).pvalue > 1e-3


def test_unigram_replacements_follow_the_corpus():
    tokens = np.random.default_rng(0).geometric(0.2, 50_000).clip(max=VOCABULARY - 1).astype(np.uint16)
    seen = frequencies(unigram([(tokens, 1.0)], VOCABULARY))
    want = expected(np.bincount(tokens, minlength=VOCABULARY), seen.sum())
    assert seen[SPECIAL].sum() == 0
    assert chisquare(seen[5:], want[5:]).pvalue > 1e-3
    assert chisquare(seen[5:]).pvalue < 1e-9


def test_a_unigram_mixes_corpora_by_their_weights_not_their_sizes():
    share = unigram([(np.full(10, 6), 3.0), (np.full(1000, 7), 1.0)], VOCABULARY)
    assert share[6] == pytest.approx(0.75)
    assert share[7] == pytest.approx(0.25)


def test_a_long_corpus_is_counted_in_blocks_spread_over_it(monkeypatch):
    monkeypatch.setattr(statistic, "COUNTED_TOKENS", 1000)
    monkeypatch.setattr(statistic, "_BLOCK", 100)
    tokens = np.repeat([6, 7, 8, 9], 2500)
    share = unigram([(tokens, 1.0)], VOCABULARY)
    assert share[6:10] == pytest.approx([0.25] * 4, abs=0.06)


def test_a_replacement_does_not_depend_on_the_batch_it_comes_in():
    batch, sampler = batch_of(8), Statistic(np.ones(VOCABULARY), Tokenizer(), seed=1)
    half = MaskedBatch(*(each[4:] for each in batch))
    assert torch.equal(sampler.sample(batch, 1.0)[4:], sampler.sample(half, 1.0))
    assert torch.equal(uniforms(batch, 3)[4:], uniforms(half, 3))


def test_the_discriminator_sees_samples_and_labels_tell_where_they_differ():
    batch = batch_of(6)
    samples = batch.input_ids.gather(1, batch.positions).clone()
    samples[:, 0] = torch.where(samples[:, 0] == 7, 8, 7)
    corrupted = corrupt(batch, samples)
    assert (corrupted.labels.sum(dim=1) == 1).all()
    assert (corrupted.labels.gather(1, batch.positions[:, :1]) == 1).all()
    assert not (corrupted.input_ids == MASK).any()


def test_frozen_asks_for_the_schedules_temperature_and_for_1_when_it_evaluates():
    sampler, schedule = Recorder(), TemperatureConfig()
    objective = Frozen(sampler, schedule, 0.25)
    for u in (0.0, 0.3, 1.0):
        objective.inputs(batch_of(2), u)
    objective.evaluation_inputs(batch_of(2))
    assert sampler.asked == [temperature(schedule, u) for u in (0.0, 0.3, 1.0)] + [1.0]
    assert objective.progress(0.0) == {"temperature": 2.0}


def test_a_statistic_logs_no_temperature():
    assert Frozen(Statistic(np.ones(VOCABULARY), Tokenizer(), 0), None, 0.25).progress(0.5) == {}


def test_a_masked_lm_sees_masks_and_is_asked_for_the_originals():
    batch = batch_of(3)
    inputs = Mlm(MASK).inputs(batch, 0.0)
    assert (inputs.input_ids.gather(1, batch.positions) == MASK).all()
    assert torch.equal(inputs.input_ids.scatter(1, batch.positions, inputs.targets), batch.input_ids)


def test_a_narrow_generator_that_cannot_be_tied_is_refused():
    with pytest.raises(ValueError, match=r"modernbert encoder, whose stock model has no projection.*joint_shallow"):
        dataclasses.replace(recipes.get("base"), objective="joint")


def test_a_depth_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"generator.depth_divisor = 3: it must divide the discriminator's 4 layers"):
        demo = recipes.get("demo")
        three = dataclasses.replace(demo.generator, depth_divisor=3)
        dataclasses.replace(demo, objective="joint_shallow", generator=three)


@pytest.mark.parametrize("objective", ["mlm", "joint_shallow", "unigram"])
def test_an_auxiliary_model_that_would_not_be_used_is_refused(objective):
    with pytest.raises(ValueError, match=f"auxiliary = 'runs/aux': objective '{objective}' uses no existing masked LM"):
        dataclasses.replace(recipes.get("demo"), objective=objective, auxiliary="runs/aux")


def test_a_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"generator.discriminator_loss_weight = 0"):
        dataclasses.replace(recipes.get("demo").generator, discriminator_loss_weight=0)
