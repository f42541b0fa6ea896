import dataclasses
from dataclasses import replace
from math import inf, nan

import pytest

from fast_electra.settings import config_file, recipes
from fast_electra.settings.config import (
    AuxiliaryConfig,
    Config,
    DataConfig,
    EncoderConfig,
    GeneratorConfig,
    TemperatureConfig,
)
from fast_electra.settings.run_config import OptimizerConfig, RunConfig


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_saved_config_loads_as_it_was(name, tmp_path):
    config_file.save(recipes.get(name), tmp_path / "config.json")
    assert config_file.load(tmp_path / "config.json") == recipes.get(name)


def test_a_config_cannot_be_changed_after_the_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.get("demo").seed = 3


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, 0.6, 0.001])
def test_impossible_mask_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"data.mask_rate = .*such as 0.15|masks \d+ of 64 tokens"):
        DataConfig(sequence_length=64, mask_rate=rate)


WRONG_NUMBERS = [
    (OptimizerConfig, "optimizer.peak_learning_rate", inf),
    (OptimizerConfig, "optimizer.beta1", 1.0),
    (OptimizerConfig, "optimizer.beta2", 1.5),
    (OptimizerConfig, "optimizer.epsilon", 0.0),
    (OptimizerConfig, "optimizer.epsilon", "small"),
    (OptimizerConfig, "optimizer.weight_decay", nan),
    (OptimizerConfig, "optimizer.clip_norm", -1.0),
    (AuxiliaryConfig, "auxiliary_model.steps", 0),
    (AuxiliaryConfig, "auxiliary_model.peak_learning_rate", 0.0),
    (GeneratorConfig, "generator.discriminator_loss_weight", inf),
    (TemperatureConfig, "temperature.initial", inf),  # samples would be the vocabulary's last word
    (TemperatureConfig, "temperature.final", nan),
]


@pytest.mark.parametrize(("section", "name", "value"), WRONG_NUMBERS)
def test_numbers_that_cannot_be_meant_are_refused(section, name, value):
    with pytest.raises(ValueError, match=rf"{name} = {value!r}: give a"):
        section(**{name.partition(".")[2]: value})


def test_gradients_need_not_be_cut():
    assert OptimizerConfig(clip_norm=0.0).clip_norm == 0


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"encoder.num_heads = 5: it must divide the hidden size 768"):
        EncoderConfig(num_heads=5)


def test_rows_must_fit_the_encoders_positions():
    with pytest.raises(ValueError, match=r"data.sequence_length = 512: the encoder has 128 positions"):
        Config(encoder=EncoderConfig(max_positions=128))


def test_corpora_may_carry_weights():
    assert Config(corpus="data/wiki").corpora == [("data/wiki", 1.0)]
    assert Config(corpus="a=0.7, b=0.3").corpora == [("a", 0.7), ("b", 0.3)]
    assert Config().corpora == []


def test_a_path_may_hold_an_equals_sign_and_a_comma_would_divide_it():
    assert Config(corpus="runs/lr=1e-3/corpus").corpora == [("runs/lr=1e-3/corpus", 1.0)]
    assert Config(corpus="lang=en=0.5,data/b=1").corpora == [("lang=en", 0.5), ("data/b", 1.0)]
    with pytest.raises(ValueError, match=r"output = 'runs/a,b': .*commas"):
        Config(output="runs/a,b")
    assert Config(output="runs/a,b", corpus="data/wiki")


def test_only_electra_embeds_tokens_at_another_width():
    assert EncoderConfig("electra", embedding_size=128).embedding_size == 128
    assert EncoderConfig("bert", embedding_size=768)
    with pytest.raises(ValueError, match=r"encoder.embedding_size = 128: a bert encoder embeds .* 768; give 0"):
        EncoderConfig("bert", embedding_size=128)


def test_checkpoints_are_counted_as_they_are_saved():
    assert RunConfig(steps=125_000, save_every=5_000, keep_every=0).most_checkpoints == 2
    assert RunConfig(steps=125_000, save_every=5_000, keep_every=1).most_checkpoints == 27
    assert RunConfig(steps=125_000, save_every=5_000, keep_every=12_500).most_checkpoints == 2 + 5


@pytest.mark.parametrize("corpus", ["a=x,b=1", "a=0", "a=-1,b=2", "a=inf,b=1", "a=nan"])
def test_bad_weights_are_refused(corpus):
    with pytest.raises(ValueError, match="corpus = "):
        Config(corpus=corpus)


def test_unknown_keys_in_a_saved_config_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"recipe": "demo", "sped": 3}')
    with pytest.raises(ValueError, match=r"\['sped'\]: unknown keys"):
        config_file.load(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": 3}', '{"run": {"steps": 0}}', '{"seed": "x"}'])
def test_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is broken: .*choose another output folder"):
        config_file.load(tmp_path / "config.json")


def test_the_auxiliary_run_is_the_same_run_with_its_own_model_and_folder():
    main = recipes.get("demo")
    first = main.for_auxiliary()
    assert (first.objective, first.recipe, first.output) == ("mlm", "demo.auxiliary", "runs/demo/auxiliary")
    assert first.encoder == main.auxiliary_model.encoder
    assert first.run.steps == main.auxiliary_model.steps
    assert first.data == main.data
    stopped = replace(main, run=replace(main.run, stop_at_step=100)).for_auxiliary()
    assert stopped.run.stop_at_step == 0, "it would never come to its end"
    assert first.seed != main.seed, "it must not have met the masks that it is asked about"
