"""JSON files that may be damaged: read whole, as what they should hold, or refused in one sentence.

Every file that this project writes for itself is read here, so that a cut, flipped, swapped or edited one ends in a
ValueError that names the file, what is wrong in it and the way out, and not in a KeyError somewhere in a run. Where a
changed digit would pass for another number, the file is written with a seal, a hash over its other values; a file
without one is from before there were seals. Like every hash here it tells damage, not forgery.
"""

import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import xxhash

SEAL = "xxh3_128"
LARGEST_NUMBER = 2**63  # what numpy, torch and struct take
_LARGEST_FILE = 1 << 26  # bytes; parsed they take some ten times as many


def read(path: Path, remedy: str, must_be_sealed: bool = False) -> dict[str, Any]:
    """The object in a JSON file, its seal checked and taken off.

    Raises FileNotFoundError where there is no file, ValueError where it is not a regular one, not UTF-8, no JSON, no
    object, changed since it was sealed, or holds a number beyond 64 bits; each ends in `remedy`, a sentence.
    """
    if not path.exists():
        raise FileNotFoundError(f"no {str(path)!r}. {remedy}")
    with named(path, remedy):
        status = path.stat()
        require(stat.S_ISREG(status.st_mode), "it is not a regular file")
        require(status.st_size <= _LARGEST_FILE, f"it has {status.st_size:,} bytes, more than {_LARGEST_FILE:,}")
        values = parse(path.read_bytes())
        require(isinstance(values, dict), f"it holds a {type(values).__name__} where an object belongs")
        given = values.pop(SEAL, None if must_be_sealed else seal(values))
        require(given == seal(values), "its values are not those it was sealed with")
    return values


@contextmanager
def named(path: Path, remedy: str) -> Iterator[None]:
    """Inside, a ValueError about what a file holds is raised again with the file before it and the way out behind."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is broken: {error}. {remedy}") from error


def parse(content: bytes | str) -> Any:
    """JSON as Python values; raises ValueError, also for numbers beyond 64 bits and for nesting beyond the stack."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_float)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The values with their seal."""
    return values | {SEAL: seal(values)}


def seal(values: dict[str, Any]) -> str:
    """The xxh3_128 of values that JSON can hold, whatever their order: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def typed(value: Any, kind: Any, place: str) -> Any:
    """The parsed JSON as `kind` (a dataclass, NamedTuple, list[...], dict[str, ...], str, bool, int, float, or a type
    or certain words: bool | Literal["auto"]).

    Raises ValueError naming the field for anything of another type, missing or unknown fields, negative, infinite or
    enormous numbers, and text with a NUL in it.
    """
    if is_dataclass(kind):
        return _typed_fields(value, kind, place)
    container = get_origin(kind)
    if container in (Union, UnionType):
        words = [word for each in get_args(kind) for word in get_args(each)]
        kind = next(each for each in get_args(kind) if not get_args(each))
        return value if value in words else typed(value, kind, place)
    if container is list and isinstance(value, list):
        return [typed(item, get_args(kind)[0], f"{place}[{index}]") for index, item in enumerate(value)]
    if container is dict and isinstance(value, dict):
        return {key: typed(item, get_args(kind)[1], f"{place}[{key!r:.60}]") for key, item in value.items()}
    names = getattr(kind, "_fields", None)
    if names and isinstance(value, list) and len(value) == len(names):
        hints = get_type_hints(kind)
        return kind(*(typed(item, hints[name], f"{place}.{name}") for name, item in zip(names, value, strict=True)))
    if kind is float and type(value) is int and value <= LARGEST_NUMBER:
        value = float(value)
    if type(value) is not kind:
        name = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{place} is {value!r:.60}, a {type(value).__name__} where a {name} belongs")
    if kind in (int, float):
        require(value >= 0, f"{place} is {value!r:.60}, which is not 0 or more")
        require(value <= LARGEST_NUMBER, f"{place} is {value!r:.60}, which is more than 2^63")
    elif kind is str:
        require("\0" not in value, f"{place} is {value!r:.60}, which holds a NUL character")
    return value


def require(condition: bool, what: str) -> None:
    """Raise ValueError saying `what` is wrong unless `condition` holds."""
    if not condition:
        raise ValueError(what)


def _typed_fields(value: Any, kind: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is a {type(value).__name__} where an object belongs")
    names = {field.name for field in fields(kind)}
    if names != set(value):
        missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
        raise ValueError(f"{place} has fields missing: {missing}, and unknown: {unknown!r:.200}")
    types = get_type_hints(kind)
    return kind(**{name: typed(value[name], types[name], name) for name in names})


def _integer(text: str) -> int:
    require(len(text) < 20, f"the number {text:.20}... is enormous")
    return int(text)


def _float(text: str) -> float:
    value = float(text.replace("Infinity", "inf"))
    require(math.isfinite(value), f"the number {text:.20} is not finite")
    return value
