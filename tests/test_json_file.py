"""A JSON file gives what was written or one sentence with its name, and never waits for a pipe."""

import json
import os

import pytest

from fast_electra.files import json_file

VALUES = {"step": 100, "files": {"a": [1.5, None, True, "\u00e9"]}}
REMEDY = "Fetch it again"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.json"


def test_a_sealed_file_comes_back_and_so_does_one_without_a_seal_or_with_a_byte_order_mark(path):
    for text in (json.dumps(json_file.sealed(VALUES)), json.dumps(VALUES), "\ufeff" + json.dumps(VALUES)):
        path.write_text(text, encoding="utf-8")
        assert json_file.read(path, REMEDY) == VALUES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON .*can't decode byte 0xff"),
        (b"[1]", "holds a list where an object belongs"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"the number 9{20}\.\.\. is enormous"),
        (b'{"a": 1e999}', "the number 1e999 is not finite"),
        (b'{"a": NaN}', "the number NaN is not finite"),
        (b"[" * 200_000, "nested too deeply"),
        (json.dumps(json_file.sealed(VALUES)).replace("100", "900").encode(), "not those it was sealed with"),
    ],
    ids=["empty", "no UTF-8", "a list", "5,000 digits", "1e999", "NaN", "nested", "a changed digit"],
)
def test_what_is_wrong_is_named_with_the_way_out(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json' is broken: .*{message}.*\. Fetch it again$"):
        json_file.read(path, REMEDY)


def test_only_a_regular_file_is_opened(path):
    with pytest.raises(FileNotFoundError, match=r"no .*x\.json'\. Fetch it again"):
        json_file.read(path, REMEDY)
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        make(path)
        with pytest.raises(ValueError, match=r"it is not a regular file\. Fetch it again"):
            json_file.read(path, REMEDY)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("value", [-1, 2**63 + 1, True, None, "1", [1]])
def test_a_number_is_one_that_can_be_used(value):
    assert json_file.typed({"a": 3}, dict[str, int], "the whole") == {"a": 3}
    with pytest.raises(ValueError, match=r"the whole\['a'\] is "):
        json_file.typed({"a": value}, dict[str, int], "the whole")


def test_a_whole_number_may_stand_where_a_fraction_belongs_and_no_infinite_one():
    assert json_file.typed(3, float, "seconds") == 3.0
    for value in (float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="seconds is "):
            json_file.typed(value, float, "seconds")
