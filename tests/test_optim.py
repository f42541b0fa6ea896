import pytest
import torch
from torch import nn

from fast_electra.optim import learning_rate, parameter_groups
from fast_electra.run_config import OptimizerConfig


def test_the_rate_rises_then_falls_to_nothing():
    config = OptimizerConfig(peak_learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 90)
    assert learning_rate(config, 100, 100) == 0.0


def test_without_warmup_the_first_rate_is_the_peak():
    assert learning_rate(OptimizerConfig(peak_learning_rate=2.0, warmup_ratio=0.0), 0, 10) == 2.0


def test_biases_and_norms_do_not_decay():
    model = nn.ModuleDict({"dense": nn.Linear(2, 3), "final_norm": nn.LayerNorm(3), "table": nn.Embedding(4, 2)})
    decayed, exempt = parameter_groups(model, 0.01)
    assert {tuple(p.shape) for p in decayed["params"]} == {(3, 2), (4, 2)}
    assert len(exempt["params"]) == 3
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)


def test_frozen_weights_are_in_no_group():
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    decayed, exempt = parameter_groups(model, 0.01)
    assert decayed["params"] == []
    assert torch.equal(exempt["params"][0], model.bias)
