import json
from dataclasses import replace

import pytest

from fast_electra.runs.command_line import parse
from fast_electra.settings import recipes
from fast_electra.settings.config import ATTENTIONS, ENCODER_TYPES, ENGINES, OBJECTIVES, SCHEDULES
from fast_electra.settings.config_file import to_dict
from fast_electra.settings.run_config import DTYPES, ON_NAN


def test_no_argument_means_the_demo():
    config, deepspeed = parse([], "")
    assert config == recipes.get("demo")
    assert deepspeed == "ds_configs/zero3.json"


def test_dotted_overrides_are_typed_and_win_over_files_and_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run:\n  steps: 7\n  log_every: 3\nseed: 5\n")
    config, deepspeed = parse(
        ["--recipe=small", "--config", str(file), "--run.steps", "9", "--deepspeed=x.json", "--local_rank=1"], ""
    )
    assert (config.run.steps, config.run.log_every, config.seed, config.recipe) == (9, 3, 5, "small")
    assert config.encoder == recipes.get("small").encoder
    assert deepspeed == "x.json"


def test_of_two_deepspeed_settings_the_later_counts():
    """The job scripts put theirs before what the user says."""
    assert parse(["--deepspeed", "a.json", "--seed=1", "--deepspeed", "b.json"], "")[1] == "b.json"


def test_the_last_recipe_counts_and_the_command_lines_before_a_files(tmp_path):
    assert parse(["--recipe", "small", "--recipe=base"], "")[0] == recipes.get("base")
    file = tmp_path / "config.json"
    file.write_text('{"recipe": "base", "seed": 3}')
    assert parse(["--config", str(file)], "")[0] == replace(recipes.get("base"), seed=3)
    for arguments in (["--recipe=large", "--config", str(file)], ["--config", str(file), "--recipe=large"]):
        assert parse(arguments, "")[0] == replace(recipes.get("large"), seed=3)


def test_a_runs_own_config_begins_another_like_it(tmp_path):
    config, _ = parse(["--recipe=electra_base", "--run.steps=7", "--encoder.num_layers=3"], "")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert parse(["--config", str(tmp_path / "config.json")], "")[0] == config


@pytest.mark.parametrize("joined", [True, False])
def test_the_command_line_counts_for_more_than_a_file_wherever_it_stands(joined, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("output: runs/old\nrun:\n  steps: 9\n  log_every: 3\n")
    named = [f"--config={file}"] if joined else ["--config", str(file)]
    config, _ = parse(["--output", "runs/new", "--run.steps", "7", *named, "--seed", "5"], "")
    assert (config.output, config.run.steps, config.run.log_every, config.seed) == ("runs/new", 7, 3, 5)


def test_an_auxiliary_recipe_is_a_masked_lm_run():
    config, _ = parse(["--recipe", "small.auxiliary"], "")
    assert (config.objective, config.encoder.num_layers) == ("mlm", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "smal"], "did you mean 'small'"),
        (["--run.step", "3"], "did you mean --run.steps"),
        (["--zzz"], "--zzz is no setting"),
        (["--run.steps", "many"], "run.steps = 'many': give a whole number"),
        (["--run.compile", "maybe"], "run.compile = 'maybe': give true or false or auto"),
        (["--optimizer.epsilon", "x"], "optimizer.epsilon = 'x': give a number or auto"),
        (["--objective", "frozn"], "objective = 'frozn': did you mean 'frozen'[?] choose one of frozen, replay, "),
        (["--encoder.model_type", "elektra"], "encoder.model_type = 'elektra': did you mean 'electra'"),
        (["--encoder.attention", "flash"], "encoder.attention = 'flash': choose one of auto, sdpa, eager"),
        (["--run.dtype", "float"], "run.dtype = 'float': did you mean 'float32'"),
        (["--run.on_nan", "stopp"], "run.on_nan = 'stopp': did you mean 'stop'"),
        (["--data.mask_rate", "1"], "data.mask_rate = 1.0"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(arguments, "")


def test_unknown_keys_in_yaml_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    for text, message in [
        ("run: {stepz: 7}", r"mine.yaml': run.stepz is no setting; did you mean run.steps\?"),
        ("rum: {steps: 7}", r"rum.steps is no setting; did you mean run.steps\?"),
        ("run.stepz: 7", r"run.stepz is no setting; did you mean run.steps\?"),
        ("objektive: mlm", r"objektive is no setting; did you mean objective\?"),
        ("run: {steps: {many: 7}}", "run.steps.many is no setting"),
        ("1: 2", "1 is no setting"),
        ("run: {steps: many}", "run.steps = 'many': give a whole number"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse(["--config", str(file)], "")


def test_help_tells_choices_and_whose_values_it_shows(capsys):
    with pytest.raises(SystemExit):
        parse(["--recipe", "small", "--help"], "Pre-train.")
    text = " ".join(capsys.readouterr().out.split())
    assert "those of the recipe 'small'; `--recipe base --help` shows base's" in text
    assert "--run.steps STEPS (type: int, default: 1000000)" in text
    for option, choices in {
        "--recipe RECIPE": recipes.RECIPES,
        "--objective OBJECTIVE": OBJECTIVES,
        "--auxiliary_engine AUXILIARY_ENGINE": ENGINES,
        "--encoder.model_type MODEL_TYPE": ENCODER_TYPES,
        "--auxiliary_model.encoder.attention ATTENTION": ATTENTIONS,
        "--temperature.schedule SCHEDULE": SCHEDULES,
        "--run.dtype DTYPE": DTYPES,
        "--run.on_nan ON_NAN": ON_NAN,
    }.items():
        assert f"{option} one of {', '.join(choices)} (type: str" in text
