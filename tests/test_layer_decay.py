"""Layer-wise learning rates: every weight once, the rate falling by the decay with each layer towards the input."""

import copy

import pytest
from tiny_models import CONFIGS
from transformers import AlbertConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from fast_electra.finetuning.layer_decay import parameter_groups

RATE, DECAY = 2e-4, 0.5


def rates(model, groups):
    """The learning rate and weight decay of each weight by name."""
    found = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups), "no weight stands in two groups"
    return {name: found[id(weight)] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_the_rate_falls_from_the_head_to_the_embeddings(name, kind):
    config = copy.deepcopy(CONFIGS[name])
    config.num_labels = 2
    model = kind.from_config(config)
    found = rates(model, parameter_groups(model, RATE, DECAY, 0.01))
    assert len(found) == len(list(model.parameters()))
    depths = set()
    for weight, (rate, decay) in found.items():
        if any(f".{layer}.{number}." in weight for layer in ("layer", "layers") for number in range(3)):
            number = int(next(part for part in weight.split(".") if part.isdigit()))
            expected = RATE * DECAY ** (3 + 2 - (number + 1))
            depths.add(number)
        elif "embed" in weight:
            expected = RATE * DECAY ** (3 + 2)
        elif weight.startswith(("classifier", "head", "qa_outputs", "pooler")) or ".pooler." in weight:
            expected = RATE
        else:
            assert "norm" in weight.lower() or "rel_" in weight or ".conv." in weight, weight
            expected = rate
        assert rate == pytest.approx(expected), weight
        assert decay == (0.0 if weight.endswith("bias") or "norm" in weight.lower() else 0.01), weight
    assert depths == {0, 1, 2}


def test_a_last_normalisation_goes_with_the_last_layer():
    config = copy.deepcopy(CONFIGS["modernbert"])
    model = AutoModelForSequenceClassification.from_config(config)
    found = rates(model, parameter_groups(model, RATE, DECAY, 0.0))
    assert found["model.final_norm.weight"][0] == found["model.layers.2.mlp.Wi.weight"][0] == RATE * DECAY**2


def test_layers_that_share_weights_are_refused_but_for_one_rate():
    config = AlbertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, embedding_size=16)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ValueError, match=r"'albert' encoder cannot be told apart .*--layer_decay 1"):
        parameter_groups(model, RATE, DECAY, 0.01)
    assert {rate for rate, _ in rates(model, parameter_groups(model, RATE, 1.0, 0.01)).values()} == {RATE}
