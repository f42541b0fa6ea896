"""A config as nested plain dictionaries and as the JSON file that is saved with every run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from fast_electra.config import Config, require


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """The dataclass `kind` from nested dictionaries; raises ValueError on an unknown key."""
    hints = get_type_hints(kind)
    require(isinstance(values, dict), kind.__name__, values, "expected an object of settings")
    unknown = sorted(set(values) - set(hints))
    require(not unknown, kind.__name__, unknown, f"unknown keys; known are {sorted(hints)}")
    return kind(
        **{
            name: from_dict(value, hints[name]) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def save(config: Config, path: Path) -> None:
    """Write the resolved config as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read a config written by `save`; raises ValueError when the file is damaged or of another version."""
    try:
        return from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no config that this version can read ({error}); choose another output folder"
        ) from error
