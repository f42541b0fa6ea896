"""The command line of a run: a recipe, then YAML files, then typed dotted overrides; unknown keys are refused.

`--recipe small --corpus data/wiki --run.steps 1000 --encoder.num_layers 6 --config mine.yaml`
"""

import difflib
import inspect
import itertools
import re
from argparse import Action, RawDescriptionHelpFormatter
from argparse import ArgumentParser as Parser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, DefaultHelpFormatter

from fast_electra.files import json_file
from fast_electra.runs.run_folder import flatten
from fast_electra.settings import recipes
from fast_electra.settings.config import ATTENTIONS, ENCODER_TYPES, ENGINES, OBJECTIVES, SCHEDULES, Config
from fast_electra.settings.config_file import from_dict, to_dict
from fast_electra.settings.run_config import DTYPES, ON_NAN

DEFAULT_DEEPSPEED = "ds_configs/zero3.json"
_LARGEST_FILE = 1 << 20  # bytes
_FILE_REMEDY = "--config names a YAML file of settings; start from config.json of a run"
_DEEPEST = 8  # levels; settings have three
_CHOICES = {
    "recipe": tuple(recipes.RECIPES),
    "objective": OBJECTIVES,
    "auxiliary_engine": ENGINES,
    "model_type": ENCODER_TYPES,
    "attention": ATTENTIONS,
    "schedule": SCHEDULES,
    "dtype": DTYPES,
    "on_nan": ON_NAN,
}  # by the last part of a setting's name
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Descriptions as they are written, and each option with its type and default, where that is a value."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        return text.replace(", default: %(default)s", "") if action.default is None else text


def parse(arguments: list[str], description: str, taken: Iterable[str] = ()) -> tuple[Config, str]:
    """The config and the path of DeepSpeed's JSON. Raises ValueError naming what is wrong; `--help` exits.

    The last recipe named counts: on the command line, else in a file. Options that the launcher has `taken` itself may
    be what an unknown one was to be.
    """
    arguments = _files_first(arguments)
    named = _values_of(arguments, "--config")
    files = {name: _settings_in(Path(name)) for name in named}
    in_files = [name for file in named if (name := _recipe_in(Path(file), files[file]))]
    recipe = recipes.get((_values_of(arguments, "--recipe") or in_files or ["demo"])[-1])
    parser = _parser(recipe, description)
    groups = {f"--{name}" for name in vars(Config()) if is_dataclass(getattr(Config(), name))}
    # Of a group, single fields are given.
    refuse_unknown(arguments, [*(option for option in options(parser) if option not in groups), *taken])
    for name, settings in files.items():
        _refuse_unknown_keys(name, settings, [option.removeprefix("--") for option in options(parser)])
    try:
        values = parser.parse_args([*arguments, f"--recipe={recipe.recipe}"])
        deepspeed = values.pop("deepspeed")
        for name in ("config", "local_rank"):
            values.pop(name, None)
        config = from_dict(values.as_dict())
    except (ArgumentError, ValueError) as error:
        places = ", ".join(map(repr, [*files, "the command line"]))
        raise ValueError(
            f"{in_words(error, Config):.1000}\n  (settings were taken from {places}; --help lists them all)"
        ) from error
    return config, deepspeed


def _parser(recipe: Config, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        usage="%(prog)s [--recipe NAME] [--config FILE] [--SETTING VALUE ...]",
        description=f"{description.strip()}\n\nThe defaults below are those of the recipe {recipe.recipe!r}; "
        "`--recipe base --help` shows base's.",
        formatter_class=Formatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; may be given several times")
    parser.add_argument("--deepspeed", type=str, default=DEFAULT_DEEPSPEED, help="DeepSpeed's JSON")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_class_arguments(Config)
    parser.set_defaults(flatten(to_dict(recipe)))
    _explain(parser.groups or {}, Config(), "")
    for action in parser._actions:
        if choices := _CHOICES.get(action.dest.rpartition(".")[2]):
            action.help = f"one of {', '.join(choices)}"
    return parser


def _explain(groups: dict[str, Any], settings: Any, name: str) -> None:
    """Put the docstrings of the settings' classes above their options, in `--help`."""
    for below, value in vars(settings).items():
        if is_dataclass(value):
            _explain(groups, value, f"{name}.{below}".lstrip("."))
    group = groups[name or type(settings).__name__]
    group.title, group.description = name or "the run", inspect.getdoc(settings)


def _values_of(arguments: list[str], option: str) -> list[str]:
    """What follows each `option`, as `--option value` or `--option=value`."""
    values = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, joined, value = argument.partition("=")
        if name == option:
            values.append(value if joined else following)
    return values


def _files_first(arguments: list[str]) -> list[str]:
    """The arguments with `--config FILE` in front: what is said on the command line counts wherever it stands."""
    files: list[str] = []
    others: list[str] = []
    following = iter(arguments)
    for argument in following:
        if argument == "--config":
            files += [argument, *itertools.islice(following, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return [*files, *others]


def _recipe_in(path: Path, settings: Any) -> str:
    """The recipe that a file's settings name, if they do. Refuses one that there is not."""
    recipe = settings.get("recipe") if isinstance(settings, dict) else None
    with json_file.named(path, _FILE_REMEDY):
        return recipes.get(recipe).recipe if isinstance(recipe, str) and recipe else ""


def _settings_in(path: Path) -> Any:
    """What a file of settings holds.

    Refuses what is no file of settings, and what a parser would read for ever: aliases, lists in lists in lists.
    """
    json_file.require(path.is_file(), f"{str(path)!r} is no file: {_FILE_REMEDY}")
    with json_file.named(path, _FILE_REMEDY):
        size, depth = path.stat().st_size, 0
        json_file.require(size <= _LARGEST_FILE, f"it has {size:,} bytes, settings have {_LARGEST_FILE:,} at most")
        try:
            text = path.read_bytes().decode("utf-8-sig")
            for event in yaml.parse(text, Loader=yaml.CSafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                json_file.require(depth < _DEEPEST, "it is nested too deeply for settings")
                json_file.require(not isinstance(event, yaml.AliasEvent), "aliases (*name) are not read")
            return yaml.load(text, Loader=yaml.CSafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not YAML ({error})") from error


def options(parser: Parser) -> list[str]:
    """The names of a parser's options."""
    return [option for action in parser._actions for option in action.option_strings]


def refuse_unknown(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for an option that is not among the known, naming the nearest that is."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known:
            raise ValueError(f"{option} is no setting{_nearest(option, known)} (--help lists them all)")


def _refuse_unknown_keys(file: str, settings: Any, known: Sequence[str]) -> None:
    """The same for a file's keys, dotted where they lie in each other."""
    for key in _keys(settings) if isinstance(settings, dict) else ():
        if key not in known:
            raise ValueError(f"{file!r}: {key:.80} is no setting{_nearest(key, known)} (--help lists them all)")


def _keys(settings: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, below in settings.items():
        yield from _keys(below, f"{prefix}{name}.") if isinstance(below, dict) else [f"{prefix}{name}"]


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def in_words(error: Exception, settings: type) -> str:
    """What a parser of these `settings`, a dataclass, says; where a value is of another type, in our words."""
    found = re.match(r'Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
    kind: Any = settings
    for name in found[1].split(".") if found else ():
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    if found is None or kind is None or is_dataclass(kind):
        return str(error)
    expected: list[str] = []
    for each in get_args(kind) or (kind,):
        expected += [_KINDS[each]] if each in _KINDS else [] if each is NoneType else get_args(each)
    return f"{found[1]} = {found[2]!r:.200}: give {' or '.join(expected)}"
