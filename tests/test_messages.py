"""Every message of the page "When something goes wrong" is one that a test provokes and expects."""

import re
from pathlib import Path

from fast_electra.runs import failure

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "WHEN_SOMETHING_GOES_WRONG.md").read_text()


def quoted():
    """What stands in backquotes in the first column of the tables of messages."""
    for table in PAGE.split("| what it says |")[1:]:
        for line in table.split("\n\n")[0].splitlines()[2:]:
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def test_every_message_is_expected_by_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path.name != Path(__file__).name)
    messages = list(quoted())
    assert len(messages) >= 12
    assert [message for message in messages if message not in tests] == []


def test_the_page_lists_the_exit_statuses_of_the_launchers():
    for status in (0, 1, failure.REFUSED, failure.DIVERGED, failure.HUNG, 75, failure.INTERRUPTED):
        assert re.search(rf"^\| {status} \|", PAGE, re.MULTILINE)
        assert re.search(rf"^{status} ", failure.__doc__, re.MULTILINE)
