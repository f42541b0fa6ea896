"""What can happen to files, drawn by hypothesis, and the promise to hold against it: read right, or refused by name.

A case is a list of damages to the files of a folder. `explore` runs a check on many of them; the check hands its reader
to `right_or_refused`, which passes two outcomes only: the content that was there before, or one message, a ValueError
or OSError of Python's own that names the file or folder and says what to do. Anything else from below (KeyError,
struct.error, UnicodeDecodeError, an error of Arrow's), a wait for ever, or wrong content in silence fails the test.
"""

import json
import os
import re
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fast_electra.files import json_file

SECONDS = 30  # for one case, in which nothing takes a second: more is a wait for ever
LONG = [pytest.mark.slow, pytest.mark.survive]
RIGHT, REFUSED = "read right", "refused"
REMEDY = re.compile(
    r"\b(bring|change|check|choose|convert|delete|fetch|give|install|leave|lists?|lower|name|pack|pass|precompute|prepare"
    r"|put|raise|remove|rename|repair|run|set|start|take|unpack|write|has to be)\b",
    re.IGNORECASE,
)
BYTES = (
    *(b"", b"\x00", b"\x00" * 4096, b"\xff", b"\n", b"\r", b'"', b"\\", b"{", b"}", b","),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\x00\x00"),  # byte order marks
    *(b"\xc0\xaf", b"\xc0\x80", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"),  # overlong forms
    *(b"\xed\xa0\x80", b"\xed\xb0\x80\xed\xa0\x80", b"\\ud800", b"\xf4\x90\x80\x80"),  # surrogates, beyond Unicode
    *(b"\xe2\x82", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\x85", b"\x1b[2J", b"\x1a"),
    *(b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1"),  # other formats' first bytes
    *(b"[" * 100_000, b'{"text":' * 50_000, b"9" * 5000, b"1e999", b"x" * 200_000),
)
FIELDS = (
    *("null", "true", "false", "0", "1", "-1", "2", "1.5", "-0.0", "1e-999", "1e999", "-1e999", "NaN", "-Infinity"),
    *("9223372036854775807", "9223372036854775808", "-" + "9" * 18, "9" * 30, "9" * 5000, "1e308", "4294967296"),
    *('""', '"x"', '"1"', '"\\u0000"', '"\\ud800"', '"/dev/zero"', '"../../etc/passwd"', '"' + "x" * 100_000 + '"'),
    *("[]", "{}", "[null]", '{"a": 1}', "[[[[]]]]", "[" * 50_000 + "]" * 50_000, '["a", "a", "a"]'),
)


class Cut(NamedTuple):
    """The file ends early."""

    at: int

    def apply(self, path, other):
        content = path.read_bytes()
        path.write_bytes(content[: self.at % (len(content) + 1)])


class Flip(NamedTuple):
    """One bit is another."""

    at: int
    bit: int

    def apply(self, path, other):
        content = bytearray(path.read_bytes())
        if content:
            content[self.at % len(content)] ^= 1 << self.bit
        path.write_bytes(content)


class Insert(NamedTuple):
    """Bytes that do not belong there, between the others or over them."""

    at: int
    content: bytes
    over: bool

    def apply(self, path, other):
        whole = path.read_bytes()
        at = self.at % (len(whole) + 1)
        path.write_bytes(whole[:at] + self.content + whole[at + len(self.content) * self.over :])


class Replace(NamedTuple):
    """The file holds something else."""

    content: bytes

    def apply(self, path, other):
        path.write_bytes(self.content)


class Swap(NamedTuple):
    """The file of another folder of the same kind."""

    def apply(self, path, other):
        shutil.copyfile(other, path)


class Field(NamedTuple):
    """One value of a JSON file, found by counting, is another, or is gone, or has an unknown one beside it.

    `resealed`: the file's seal is made anew, as if the value had been written so.
    """

    node: int
    value: str
    how: str
    resealed: bool = False

    def apply(self, path, other):
        try:
            values = json.loads(path.read_bytes())
            json.dumps(values)
        except (ValueError, RecursionError):
            return
        places = list(_places(values))
        if places:
            self._change(*places[self.node % len(places)])
        text = json.dumps(values).replace('"@value"', self.value)
        if self.resealed and isinstance(values, dict) and json_file.SEAL in values:
            try:
                content = json.loads(text)
                del content[json_file.SEAL]
                text = json.dumps(json_file.sealed(content))
            except (ValueError, RecursionError, KeyError):
                pass
        path.write_text(text)

    def _change(self, container, key):
        if self.how == "remove":
            del container[key]
        elif self.how == "add" and isinstance(container, dict):
            container["unknown"] = "@value"
        else:
            container[key] = "@value"


class Odd(NamedTuple):
    """Not a file at all."""

    kind: str

    def apply(self, path, other):
        path.unlink()
        match self.kind:
            case "missing":
                pass
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path.name)
            case device:
                path.symlink_to(device)


def _places(values):
    """(container, key) of every value inside of parsed JSON."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(items):
        yield values, key
        yield from _places(value)


_at = st.integers(0, 2**40) | st.integers(0, 64)
_contents = st.sampled_from(BYTES) | st.binary(max_size=40)
_bytes_damage = st.one_of(
    st.builds(Cut, _at),
    st.builds(Flip, _at, st.integers(0, 7)),
    st.builds(Insert, _at, _contents, st.booleans()),
    st.builds(Replace, _contents),
)
_whole_damage = st.sampled_from([Swap(), *map(Odd, ("missing", "folder", "pipe", "loop", "/dev/zero", "/dev/null"))])
_hows = st.sampled_from(("set", "set", "remove", "add"))
_field_damage = st.builds(Field, st.integers(0, 2**20), st.sampled_from(FIELDS), _hows, st.just(False))
_resealed_damage = _field_damage.map(lambda damage: damage._replace(resealed=True))


def damages(files, json_files=(), resealed=()):
    """Lists of (file, damage): usually one, of any kind; fields of `json_files` too, resealed ones of `resealed`."""
    kinds = [st.tuples(st.sampled_from(files), _bytes_damage), st.tuples(st.sampled_from(files), _whole_damage)]
    if json_files:
        kinds += [st.tuples(st.sampled_from(json_files), _field_damage)] * 2
    if resealed:
        kinds.append(st.tuples(st.sampled_from(resealed), _resealed_damage))
    return st.lists(st.one_of(kinds), min_size=1, max_size=3).map(_odd_last)


def _odd_last(case):
    """No damage follows for a file that is none any more."""
    odd = {file: (file, damage) for file, damage in case if isinstance(damage, Odd)}
    return [one for one in case if one[0] not in odd] + list(odd.values())


def apply(case, folder, other=None):
    """The damages, one after the other."""
    for file, damage in case:
        damage.apply(folder / file, other and other / file)


def resealed(case):
    """Whether a value was changed as if written so: nothing can tell that, but nothing may break on it either."""
    return any(isinstance(damage, Field) and damage.resealed for _, damage in case)


@contextmanager
def fresh(folder, original):
    """A copy of the folder `original` at `folder`, gone afterwards."""
    shutil.copytree(original, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Endless(BaseException):
    """A reader that waits, or counts, for ever; no handler of errors may take it for one."""


@contextmanager
def time_limit(seconds=SECONDS):
    """Raise Endless unless the block ends in time."""

    def stop(signal_number, frame):
        raise Endless(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def right_or_refused(read, expected, *places):
    """The outcome of `read`: it equals `expected` (or `expected` is ...), or the error is one for people.

    `places` are the path of which the message must tell and other names for it.
    """
    with time_limit():
        try:
            found = read()
        except (ValueError, OSError) as error:
            require_for_people(error, places)
            return REFUSED
    assert expected is ... or found == expected
    return RIGHT


def require_for_people(error, places):
    """An error of Python's own that names the path, and, if it is ours, what to do."""
    text = str(error)
    assert type(error).__module__ == "builtins" and not isinstance(error, UnicodeError), repr(error)
    names = [name for place in map(str, places) for name in (place, repr(place)[1:-1])]
    assert any(name in text for name in names), f"does not name {places[0]}: {error!r}"
    assert len(text) < 3000, f"{len(text)} characters: {text[:300]} ..."
    if isinstance(error, ValueError):
        assert REMEDY.search(text), f"says no way out: {text}"


def cases(quick, long):
    """The number of cases of the quick test and of the long proof."""
    return pytest.mark.parametrize("examples", [quick, pytest.param(long, marks=LONG)])


def explore(check, strategy, examples, known=()):
    """`check` on the `known` cases and on `examples` drawn ones, always the same; returns how often which outcome."""
    outcomes = Counter()

    def counted(case):
        outcomes[check(case)] += 1

    test = given(strategy)(counted)
    for case in known:
        test = example(case)(test)
    settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )(test)()
    print(f"\n{outcomes.total()} cases: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}")
    return outcomes
