"""Worker processes change nothing but the time: same ids, same order, and a dead one is reported."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from fast_electra.corpora import tokenization, tokenizer
from fast_electra.corpora.tokenization import tokenize

TEXTS = [topics[name] for name in sorted(topics)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS, 1000, folder, kind="bpe")
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tokenization, "_BATCH_CHARACTERS", 20_000)


def run(folder, texts=TEXTS, workers=1):
    return list(tokenize(texts, folder / "tokenizer.json", end_id=3, dtype=np.uint16, workers=workers))


def test_each_document_is_its_tokens_and_the_end_token_in_order(folder):
    reference = AutoTokenizer.from_pretrained(folder)
    batches = run(folder)
    assert len(batches) > 5
    rows = [row for ids, lengths, _, _ in batches for row in np.split(ids, np.cumsum(lengths)[:-1])]
    expected = [[*reference(text, add_special_tokens=False)["input_ids"], 3] for text in TEXTS]
    assert [row.tolist() for row in rows] == expected
    assert sum(batch.text_bytes for batch in batches) == sum(len(text.encode()) for text in TEXTS)
    assert all(batch.ids.dtype == np.uint16 and batch.seconds > 0 for batch in batches)


def test_the_number_of_workers_changes_nothing(folder):
    one, three = run(folder), run(folder, workers=3)
    assert len(one) == len(three)
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.lengths, b.lengths)


def test_a_special_token_in_a_text_is_ordinary_characters_in_any_tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "mask", "sep"]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    (batch,) = run(tmp_path, ["[MASK] [SEP]"])
    assert batch.ids.tolist() == [5, 7, 6, 5, 8, 6, 3]


def test_nothing_is_truncated_or_padded_whatever_the_tokenizer_was_saved_with(folder, tmp_path):
    saved = AutoTokenizer.from_pretrained(folder)
    saved("text", padding="max_length", truncation=True, max_length=4)
    saved.save_pretrained(tmp_path)
    assert '"max_length": 4' in (tmp_path / "tokenizer.json").read_text()
    assert [batch.ids.tolist() for batch in run(tmp_path)] == [batch.ids.tolist() for batch in run(folder)]


def test_documents_are_read_no_further_ahead_than_a_few_batches(folder):
    read = []
    stream = tokenize(
        (read.append(0) or "word " * 4000 for _ in range(100)),
        folder / "tokenizer.json",
        end_id=3,
        dtype="i4",
        workers=2,
    )
    next(stream)
    assert len(read) <= 6
    stream.close()


def test_a_killed_worker_is_reported_and_not_waited_for(folder, monkeypatch):
    started = []
    popen = tokenization.subprocess.Popen
    monkeypatch.setattr(tokenization.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def texts():
        yield "x " * 20_000
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()
        yield from TEXTS

    with pytest.raises(ChildProcessError, match=r"worker ended with status -9 \(killed.*fewer workers"):
        run(folder, texts())
    assert all(process.poll() is not None for process in started)


def test_a_failing_worker_says_why(folder):
    with pytest.raises(RuntimeError, match=r"(?s)a tokenising worker failed:.*TypeError"):
        run(folder, [b"bytes, not text"])


def test_an_error_of_the_reader_ends_the_workers(folder, monkeypatch):
    started = []
    popen = tokenization.subprocess.Popen
    monkeypatch.setattr(tokenization.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def texts():
        yield from TEXTS[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, texts(), workers=2)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


# Ctrl-C after a lock was taken and before the block that gives it back has begun, as it can come in Python's own.
CUT_SHORT = """
import sys, threading
from pathlib import Path
from fast_electra.corpora.tokenization import tokenize

taken, main, left = threading.Condition.__enter__, threading.get_ident(), int(sys.argv[2])

def interrupted(lock):
    global left
    taken(lock)
    left -= threading.get_ident() == main
    if threading.get_ident() == main and left == 0:
        raise KeyboardInterrupt
    return True

threading.Condition.__enter__ = interrupted
for _ in tokenize(["a text"] * 1000, Path(sys.argv[1]) / "tokenizer.json", end_id=3, dtype="i4", workers=2):
    pass
"""


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_ctrl_c_within_a_lock_leaves_nothing_that_waits_for_ever(folder, nth):
    command = [sys.executable, "-c", CUT_SHORT, str(folder), str(nth)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    # One lock for each worker's start: with a third there would be others, of those that a pool has.
    assert done.returncode == (-signal.SIGINT if nth < 3 else 0), done.stderr
