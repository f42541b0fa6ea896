import os
from dataclasses import replace

import pytest

from fast_electra.corpora.corpus import Corpus
from fast_electra.engine import parallel
from fast_electra.pretraining import setup_run
from fast_electra.runs import run_state, verified
from fast_electra.settings import recipes
from fast_electra.settings.config import DataConfig


@pytest.fixture
def files(tmp_path):
    (tmp_path / "run").mkdir()
    found = [tmp_path / "corpus.bin", tmp_path / "corpus.idx"]
    for each in found:
        each.write_bytes(b"tokens")
    return found


@pytest.fixture
def start(tmp_path, files):
    """Start a run; returns whether it read the files."""

    def begin(identity="a", output="run", problem=None):
        read = []

        def verify():
            read.append(True)
            if problem:
                raise ValueError(problem)

        verified.once(str(tmp_path / output), files, identity, verify)
        return bool(read)

    return begin


def test_a_later_start_does_not_read_again_what_was_found_whole(start):
    assert start()
    assert not start()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"tokens and more"),
        lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
        lambda path: path.unlink(),
    ],
    ids=["size", "time", "gone"],
)
def test_a_changed_file_is_read_again(start, files, change):
    start()
    change(files[1])
    assert start()


def test_other_contents_under_the_same_names_are_read_again(start):
    start()
    assert start(identity="b")


def test_what_is_damaged_is_not_noted_down(start):
    with pytest.raises(ValueError, match=r"damaged"):
        start(problem="damaged")
    assert start()


def test_a_note_that_is_damaged_or_forged_counts_for_nothing(start, tmp_path):
    start()
    note = tmp_path / "run" / run_state.VERIFIED
    for content in (note.read_text()[:-10], note.read_text().replace('"a"', '"b"')):
        note.write_text(content)
        assert start(identity="b")
        assert not start(identity="b")


def test_two_corpora_of_a_run_are_both_remembered(start, tmp_path):
    other = tmp_path / "other.bin"
    other.write_bytes(b"more")
    start()
    verified.once(str(tmp_path / "run"), [other], "o", lambda: None)
    assert not start()
    verified.once(str(tmp_path / "run"), [other], "o", lambda: pytest.fail("read again"))


def test_without_a_folder_nothing_is_noted_down(start, tmp_path):
    assert start(output="none")
    assert not (tmp_path / "none").exists()


def test_a_run_reads_its_corpus_at_its_first_start_alone(tiny_corpus, tmp_path, monkeypatch):
    read, verify = [], Corpus.verify
    monkeypatch.setattr(Corpus, "verify", lambda corpus: read.append(corpus.path) or verify(corpus))
    parallel.start()
    data = DataConfig(sequence_length=32, held_out_rows=8)
    config = replace(recipes.get("demo"), corpus=str(tiny_corpus), output=str(tmp_path), data=data)
    for _ in range(2):
        setup_run.open_batches(config)
    assert read == [tiny_corpus]
