import pytest
import torch
from tiny_models import CONFIGS
from torch import nn
from transformers import AutoModel, MegatronBertConfig, RobertaPreLayerNormConfig

from fast_electra.engine.optim import exempt_from_decay, learning_rate, parameter_groups
from fast_electra.models import discriminator
from fast_electra.settings.run_config import OptimizerConfig


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


def test_what_would_move_others_off_16_bytes_comes_last():
    """As two models of a joint run, the first with a head over 30,522 words, lie in one block of memory."""
    parts = [nn.LayerNorm(16), nn.Linear(16, 30_522), nn.LayerNorm(16), nn.Linear(16, 1), nn.LayerNorm(16)]
    _, exempt = parameter_groups(nn.Sequential(*parts).bfloat16(), 0.01)
    sizes = [weight.numel() for weight in exempt["params"]]
    assert sizes == [16] * 6 + [30_522, 1]
    parts[1] = nn.Linear(16, 32_000)
    exempt = parameter_groups(nn.Sequential(*parts[:3]), 0.01)[1]
    assert [weight.numel() for weight in exempt["params"]] == [16, 16, 32_000, 16, 16], "else nothing is moved"


def test_frozen_weights_are_in_no_group():
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    decayed, exempt = parameter_groups(model, 0.01)
    assert decayed["params"] == []
    assert torch.equal(exempt["params"][0], model.bias)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_decayed_is_biases_and_normalisations(name):
    model = discriminator.build(CONFIGS[name], "eager", torch.float32)
    by_name = {each for each, _ in model.named_parameters() if each.endswith("bias") or "norm" in each.lower()}
    assert exempt_from_decay(model) == by_name


def test_a_norm_is_known_by_its_class_whatever_the_names_around_it():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for config in (RobertaPreLayerNormConfig(**sizes, vocab_size=9), MegatronBertConfig(**sizes, vocab_size=9)):
        model = AutoModel.from_config(config)
        kept = {name for name, weight in model.named_parameters() if weight.dim() == 1}
        assert exempt_from_decay(model) == kept, config.model_type
