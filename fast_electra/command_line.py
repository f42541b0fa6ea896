"""The command line of a run: a recipe, then YAML files, then typed dotted overrides; unknown keys are refused.

`--recipe small --corpus data/wiki --run.steps 1000 --encoder.num_layers 6 --config mine.yaml`
"""

import difflib
import itertools
from dataclasses import is_dataclass
from pathlib import Path

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from fast_electra import json_file, recipes
from fast_electra.config import Config
from fast_electra.config_file import from_dict, to_dict
from fast_electra.run_folder import flatten

DEFAULT_DEEPSPEED = "ds_configs/zero3.json"
_LARGEST_FILE = 1 << 20  # bytes
_DEEPEST = 8  # levels; settings have three


def parse(arguments: list[str], description: str) -> tuple[Config, str]:
    """The config and the path of DeepSpeed's JSON. Raises ValueError naming what is wrong; `--help` exits."""
    recipe = recipes.get(next(iter(_values_of(arguments, "--recipe")), "") or "demo")
    parser = _parser(recipe, description)
    _refuse_unknown(arguments, parser)
    files = _values_of(arguments, "--config")
    for file in files:
        _require_settings(Path(file))
    try:
        values = parser.parse_args(arguments)
        deepspeed = values.pop("deepspeed")
        for name in ("config", "local_rank"):
            values.pop(name, None)
        config = from_dict(values.as_dict())
        if config.recipe != recipe.recipe:
            raise ValueError(
                f"recipe: {config.recipe} stands in a file, but a recipe's settings are looked up from the command "
                f"line alone; pass --recipe {config.recipe} and take it out of the file"
            )
    except (ArgumentError, ValueError) as error:
        places = ", ".join(map(repr, [*files, "the command line"]))
        raise ValueError(f"{error!s:.1000}\n  (settings were taken from {places}; --help lists them all)") from error
    return config, deepspeed


def _parser(recipe: Config, description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; may be given several times")
    parser.add_argument("--deepspeed", type=str, default=DEFAULT_DEEPSPEED, help="DeepSpeed's JSON")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_class_arguments(Config)
    parser.set_defaults(flatten(to_dict(recipe)))
    return parser


def _values_of(arguments: list[str], option: str) -> list[str]:
    """What follows each `option`, as `--option value` or `--option=value`."""
    values = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, joined, value = argument.partition("=")
        if name == option:
            values.append(value if joined else following)
    return values


def _require_settings(path: Path) -> None:
    """Refuse what is no file of settings, and what a parser would read for ever: aliases, lists in lists in lists."""
    remedy = "--config names a YAML file of settings; start from config.json of a run"
    json_file.require(path.is_file(), f"{str(path)!r} is no file: {remedy}")
    with json_file.named(path, remedy):
        size, depth = path.stat().st_size, 0
        json_file.require(size <= _LARGEST_FILE, f"it has {size:,} bytes, settings have {_LARGEST_FILE:,} at most")
        try:
            for event in yaml.parse(path.read_bytes().decode("utf-8-sig"), Loader=yaml.CSafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                json_file.require(depth < _DEEPEST, "it is nested too deeply for settings")
                json_file.require(not isinstance(event, yaml.AliasEvent), "aliases (*name) are not read")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not YAML ({error})") from error


def _refuse_unknown(arguments: list[str], parser: ArgumentParser) -> None:
    options = [option for action in parser._actions for option in action.option_strings]
    groups = {f"--{name}" for name in vars(Config()) if is_dataclass(getattr(Config(), name))}
    known = [option for option in options if option not in groups]  # of a group, single fields are given
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{option} is no setting{hint} (--help lists them all)")
