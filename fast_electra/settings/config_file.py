"""A config as nested plain dictionaries and as the JSON file that is saved with every run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from fast_electra.files import json_file
from fast_electra.settings.config import Config
from fast_electra.settings.require import require


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config, place: str = "") -> Any:
    """The dataclass `kind` from nested dictionaries; raises ValueError for an unknown key or a value of another type.

    `place` is where the values stand: "" or a prefix that ends in a dot.
    """
    hints = get_type_hints(kind)
    require(isinstance(values, dict), kind.__name__, values, "expected an object of settings")
    unknown = sorted(set(values) - set(hints))
    require(not unknown, kind.__name__, unknown, f"unknown keys; known are {sorted(hints)}")
    return kind(
        **{
            name: from_dict(value, hints[name], f"{place}{name}.")
            if dataclasses.is_dataclass(hints[name])
            else json_file.typed(value, hints[name], place + name)
            for name, value in values.items()
        }
    )


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    partial.replace(path)


def load(path: Path) -> Config:
    """Read a config written by `save`; raises ValueError when the file is damaged or of another version."""
    remedy = "It has to be of this version; choose another output folder"
    values = json_file.read(path, remedy)
    with json_file.named(path, remedy):
        config: Config = from_dict(values)
    return config
