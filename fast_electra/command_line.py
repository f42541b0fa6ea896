"""The command line of a run: a recipe, then YAML files, then typed dotted overrides; unknown keys are refused.

`--recipe small --corpus data/wiki --run.steps 1000 --encoder.num_layers 6 --config mine.yaml`
"""

import difflib

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from fast_electra import recipes
from fast_electra.config import Config
from fast_electra.config_file import from_dict, to_dict
from fast_electra.run_folder import flatten

DEFAULT_DEEPSPEED = "ds_configs/zero3.json"


def parse(arguments: list[str], description: str) -> tuple[Config, str]:
    """The config and the path of DeepSpeed's JSON. Raises ValueError naming what is wrong; `--help` exits."""
    recipe = recipes.get(_value_of(arguments, "--recipe") or "demo")
    parser = _parser(recipe, description)
    _refuse_unknown(arguments, parser)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    deepspeed = values.pop("deepspeed")
    for name in ("config", "local_rank"):
        values.pop(name, None)
    config = from_dict(values.as_dict())
    if config.recipe != recipe.recipe:
        raise ValueError(
            f"recipe: {config.recipe} stands in a file, but a recipe's settings are looked up from the command line "
            f"alone; pass --recipe {config.recipe} and take it out of the file"
        )
    return config, deepspeed


def _parser(recipe: Config, description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; may be given several times")
    parser.add_argument("--deepspeed", type=str, default=DEFAULT_DEEPSPEED, help="DeepSpeed's JSON")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_class_arguments(Config)
    parser.set_defaults(flatten(to_dict(recipe)))
    return parser


def _value_of(arguments: list[str], option: str) -> str | None:
    """What follows `option`, as `--option value` or `--option=value`."""
    for index, argument in enumerate(arguments):
        if argument == option:
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def _refuse_unknown(arguments: list[str], parser: ArgumentParser) -> None:
    known = [option for action in parser._actions for option in action.option_strings]
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{option} is no setting{hint} (--help lists them all)")
