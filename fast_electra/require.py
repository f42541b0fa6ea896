"""Refusing a setting: its name, its value and the way out."""

from collections.abc import Callable, Iterable
from typing import Any


def require(condition: bool, name: str, value: Any, remedy: str) -> None:
    """Raise `ValueError` with the setting's name, its value and the way out unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name} = {value!r:.200}: {remedy}")


def require_each(section: str, settings: Any, names: Iterable[str], holds: Callable[[Any], bool], remedy: str) -> None:
    """`require` that the named settings of a section hold."""
    for name in names:
        value = getattr(settings, name)
        require(holds(value), f"{section}.{name}", value, remedy)
