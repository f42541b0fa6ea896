"""What is a spike, and what sits at its floor: laws of plain numbers."""

import math

import numpy as np
import pytest
import torch

from fast_electra.methods.divergence import WARM_UP, WINDOW, Spikes, broken_throughout, is_below_floor, last_below_floor


def test_the_running_figures_are_numpys_until_the_window_is_full_and_forget_afterwards():
    losses, spikes = np.random.default_rng(0).normal(2.0, 0.1, 2000), Spikes(1e9)
    for loss in losses[:WINDOW]:
        spikes.add(loss)
    assert spikes.mean == pytest.approx(losses[:WINDOW].mean())
    assert spikes.variance == pytest.approx(losses[:WINDOW].var())
    for loss in losses + 5:
        spikes.add(loss)
    assert spikes.mean == pytest.approx(7.0, abs=0.05)


def test_a_loss_far_above_the_mean_is_a_spike_and_does_not_hide_the_next():
    spikes, rng = Spikes(6.0), np.random.default_rng(0)
    assert spikes.limit == math.inf, "nothing is known yet"
    for loss in rng.normal(2.0, 0.1, WARM_UP):
        assert loss <= spikes.limit
        spikes.add(loss)
    for _ in range(2):
        assert 2.3 < spikes.limit < 3.5
        spikes.add(1e6)
    assert Spikes(0.0).limit == math.inf


def test_a_sound_loss_is_not_changed_by_a_bit_and_a_broken_one_breaks_every_gradient():
    weights, inputs = torch.tensor([0.3, 0.2], requires_grad=True), torch.tensor([3.0, 0.0])
    for factor in (1.0, math.inf, math.nan):
        weights.grad = None
        loss = (weights * inputs).sum().exp() + factor
        guarded = broken_throughout(loss)
        guarded.backward()
        if factor == 1.0:
            assert torch.equal(guarded, loss)
            assert torch.equal(weights.grad, torch.autograd.grad((weights * inputs).sum().exp(), weights)[0])
        else:
            assert weights.grad.isnan().all(), "without it they would be finite"


def test_the_floor_is_left_by_one_percent():
    assert is_below_floor({"loss": 0.35, "floor": 0.40})
    assert not is_below_floor({"loss": 0.399, "floor": 0.40})
    assert not is_below_floor({"loss": None, "floor": 0.40})
    assert is_below_floor({"loss": 7.0}), "a masked LM has none"
    rows = [{"step": step, "loss": loss, "floor": 0.4} for step, loss in ((1, 0.6), (2, 0.3), (3, 0.4))]
    assert last_below_floor([*rows, {"step": 4, "held_out": {}}]) == 2
    assert last_below_floor([]) == 0
