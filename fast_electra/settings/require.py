"""Refusing a setting: its name, its value and the way out."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any


def require(condition: bool, name: str, value: Any, remedy: str) -> None:
    """Raise `ValueError` with the setting's name, its value and the way out unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name} = {value!r:.200}: {remedy}")


def require_one_of(choices: Iterable[str], name: str, value: Any) -> None:
    """`require` that the value is one of the choices; the nearest of them is named."""
    known = list(choices)
    require(value in known, name, value, f"{did_you_mean(str(value), known)}choose one of {', '.join(known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question whether the known word nearest to this one was meant, and a space; empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def require_each(section: str, settings: Any, names: Iterable[str], holds: Callable[[Any], bool], remedy: str) -> None:
    """`require` that the named settings of a section hold."""
    for name in names:
        value = getattr(settings, name)
        require(holds(value), f"{section}.{name}", value, remedy)
