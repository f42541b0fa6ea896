import pytest

from fast_electra.models.encoder import transformers_config
from fast_electra.settings import recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_carries_its_own_name_and_command(name):
    assert recipes.get(name).recipe == name
    assert "deepspeed launchers/pretrain.py" in recipes.RECIPES[name].__doc__


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_auxiliary_model_is_a_half_to_a_quarter_as_deep(name):
    config = recipes.get(name)
    assert 0.25 <= config.auxiliary_model.encoder.num_layers / config.encoder.num_layers <= 0.5


def test_electra_recipes_follow_the_papers_table():
    table = {"small": (12, 256, 4, 1024, 5e-4), "base": (12, 768, 12, 3072, 2e-4), "large": (24, 1024, 16, 4096, 2e-4)}
    for size, (layers, width, heads, inner, rate) in table.items():
        config = recipes.get(f"electra_{size}")
        shape = config.encoder
        assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.intermediate_size) == (
            layers,
            width,
            heads,
            inner,
        )
        assert config.optimizer.peak_learning_rate == rate
        assert config.optimizer.beta2 == 0.999
        assert round(config.optimizer.warmup_ratio * config.run.steps) == 10_000
    assert recipes.get("electra_small").encoder.embedding_size == 128
    assert recipes.get("electra_large").data.mask_rate == 0.25


def test_a_name_without_end_is_cut_short():
    with pytest.raises(ValueError, match=r"recipe = 'x{79}: choose one of"):
        recipes.get("x" * 100_000)


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"recipe = 'electra_bass': did you mean 'electra_base'"):
        recipes.get("electra_bass")
    with pytest.raises(ValueError, match=r"small\.aux"):
        recipes.get("small.aux")


def test_modern_recipes_attend_globally_in_every_layer(tiny_tokenizer):
    shape = transformers_config(recipes.get("demo").encoder, tiny_tokenizer)
    assert set(shape.layer_types) == {"full_attention"}
    assert shape.vocab_size == len(tiny_tokenizer)
