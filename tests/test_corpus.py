"""A corpus holds its inputs' text exactly, is the same however it is made, and notices what happened to it since."""

import errno
import json
import logging
import shutil
import threading
import warnings
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from transformers import BertTokenizerFast

from fast_electra.corpora import corpus, documentation, tokenization, tokenizer
from fast_electra.corpora.corpus import Corpus
from fast_electra.files import staging

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core.datasets import indexed_dataset

TEXTS = ["\n".join(line for line in topics[name].split("\n") if line.strip()) for name in sorted(topics)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The same kind of text in two formats, with something to drop."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "a.txt").write_text("\n\n".join(TEXTS[:40]), encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in ["", *TEXTS[40:], " ", "a [SEP] of [MASK] \U0001f600"]]
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def build(inputs, output, **options):
    options = {"vocab_size": 1000, "kind": "bpe", "workers": 1, "progress": False} | options
    return corpus.build([inputs], output, **options)


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    return build(inputs, tmp_path_factory.mktemp("made") / "corpus")


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made.path, tmp_path / "copy"))


def test_every_document_is_there_and_ends_in_sep(made):
    rows = np.split(made.tokens, made.document_starts[1:])
    assert len(rows) == made.num_documents == len(TEXTS) + 1
    assert {int(row[-1]) for row in rows} == {made.tokenizer.sep_token_id}
    texts = [made.tokenizer.decode(row[:-1].tolist()) for row in rows]
    assert texts == [*TEXTS, "a [SEP] of [MASK] \U0001f600"]
    assert min(int(row[:-1].min()) for row in rows) >= len(tokenizer.SPECIAL_TOKENS)


def test_megatron_reads_it_too(made):
    dataset = indexed_dataset.IndexedDataset(str(made.path / "corpus"))
    assert len(dataset) == made.num_documents
    assert np.array_equal(np.concatenate([dataset[i] for i in range(len(dataset))]), made.tokens)


def test_the_manifest_counts_what_is_there_and_what_is_not(made, inputs):
    manifest = made.manifest
    assert manifest.tokens == made.num_tokens == len(made.tokens)
    assert manifest.documents == made.num_documents
    assert manifest.text_bytes == sum(len(text.encode()) for text in TEXTS) + len("a [SEP] of [MASK] ") + 4
    assert manifest.dropped == {"empty_documents": 2, "cuts_in_long_documents": 0}
    assert [Path(one.name).name for one in manifest.inputs] == ["a.txt", "b.jsonl"]
    assert [one.size_bytes for one in manifest.inputs] == [(inputs / n).stat().st_size for n in ("a.txt", "b.jsonl")]
    assert manifest.dtype == made.tokens.dtype.name == "uint16"
    assert manifest.vocab_size == len(made.tokenizer) == 1000
    assert manifest.tokenizer_fingerprint == made.tokenizer_fingerprint == tokenizer.fingerprint(made.tokenizer)
    assert manifest.megabytes_per_second_per_worker > 0


def test_the_number_of_workers_changes_no_byte(made, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "_BATCH_CHARACTERS", 10_000)
    other = build(inputs, tmp_path / "other", workers=3)
    for name in ("corpus.bin", "corpus.idx", "tokenizer/tokenizer.json"):
        assert (other.path / name).read_bytes() == (made.path / name).read_bytes()
    assert other.fingerprint == made.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_the_same_build_again_does_nothing_and_another_is_refused(made, inputs, tmp_path, caplog):
    before = (made.path / "manifest.json").stat().st_mtime_ns
    moved = shutil.copytree(inputs, tmp_path / "moved")
    with caplog.at_level(logging.INFO, "fast_electra"):
        assert build(moved, made.path, workers=2).fingerprint == made.fingerprint
    assert "nothing to do" in caplog.text
    for changed in ({"vocab_size": 900}, {"kind": "unigram"}, {"text_key": "body"}, {"tokenizer": made.tokenizer}):
        with pytest.raises(FileExistsError, match=r"other inputs or settings.*remove it"):
            build(inputs, made.path, **changed)
    (moved / "c.txt").write_text("more")
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        build(moved, made.path)
    assert (made.path / "manifest.json").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_not_touched(inputs, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        build(inputs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_tokenizer_of_an_existing_model_is_taken_and_travels_along(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "mask", "[", "]"]
    bert = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})
    (tmp_path / "a.txt").write_text("The foxes [MASK]\nthe\n\nunknown")
    made = corpus.build([tmp_path / "a.txt"], tmp_path / "out", tokenizer=bert, workers=1, progress=False)
    assert made.tokens.tolist() == [5, 6, 7, 9, 8, 10, 5, 3, 1, 3]
    assert made.document_starts.tolist() == [0, 8]
    assert made.tokenizer_fingerprint == tokenizer.fingerprint(bert) == tokenizer.fingerprint(made.tokenizer)
    with pytest.raises(ValueError, match="vocab_size=5 but the given tokenizer has 11 entries"):
        corpus.build([tmp_path / "a.txt"], tmp_path / "other", tokenizer=bert, vocab_size=5)


def test_a_tokenizer_whose_ids_have_gaps_is_refused(tmp_path):
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "the": 50}
    (tmp_path / "a.txt").write_text("the")
    with pytest.raises(ValueError, match=r"gave the id 50 but says to have 6 entries"):
        corpus.build([tmp_path / "a.txt"], tmp_path / "out", tokenizer=BertTokenizerFast(vocab=vocab), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_without_inputs_it_is_the_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(documentation, "documents", lambda: iter(TEXTS[:30]))
    made = corpus.build([], tmp_path / "out", vocab_size=800, workers=1, progress=False)
    assert made.num_documents == 30


def test_settings_that_make_no_corpus_are_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="neither tokenizer nor vocab_size"):
        build(inputs, tmp_path / "out", vocab_size=None)
    with pytest.raises(ValueError, match="workers=0"):
        build(inputs, tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="vocab_size=100000 is too large"):
        build(inputs, tmp_path / "out", vocab_size=100_000)
    assert not any(tmp_path.iterdir())


def test_inputs_without_text_are_refused_and_nothing_is_left(made, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": ""}\n{"text": null}')
    with pytest.raises(ValueError, match=r"no document with text in .*a\.jsonl'\] \(2 empty ones\)"):
        build(tmp_path / "in", tmp_path / "out", tokenizer=made.tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_an_error_halfway_leaves_nothing(made, inputs, tmp_path, monkeypatch, when):
    if when == "reading":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.txt").write_text("\n\n".join(TEXTS))
        (tmp_path / "in" / "b.txt").write_bytes(b"text \xff")
        expected = pytest.raises(ValueError, match=r"b\.txt' is not UTF-8 text: byte 0xff at offset 5")
        inputs = tmp_path / "in"
    else:
        monkeypatch.setattr(indexed_dataset.IndexedDatasetBuilder, "add_document", interrupt)
        expected = pytest.raises(KeyboardInterrupt)
    before = threading.active_count()
    with expected as error:
        build(inputs, tmp_path / "out", tokenizer=made.tokenizer, vocab_size=None)
    assert not [path for path in tmp_path.iterdir() if path.name != "in"]
    assert error is not None and threading.active_count() == before  # no worker is kept alive by the traceback


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_full_disk_is_named_and_nothing_is_left(made, inputs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(indexed_dataset.IndexedDatasetBuilder, "add_document", full)
    with pytest.raises(OSError, match=r"no space left on the disk of .*nothing was left"):
        build(inputs, tmp_path / "out", tokenizer=made.tokenizer, vocab_size=None)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(OSError, match=r"needs about 0\.00 GB"):
        build(inputs, tmp_path / "out", tokenizer=made.tokenizer, vocab_size=None)
    assert not any(tmp_path.iterdir())


def test_a_whole_corpus_opens_by_folder_or_file_and_verifies(made, copy):
    for path in (copy, str(copy), copy / "corpus.bin", copy / "corpus"):
        opened = Corpus.open(path)
        assert opened.fingerprint == made.fingerprint and np.array_equal(opened.tokens, made.tokens)
    assert not opened.tokens.flags.writeable
    opened.verify()
    assert Corpus.open(copy, tokenizer=made.path / "tokenizer").num_tokens == made.num_tokens


@pytest.mark.parametrize(
    ("name", "message"), [("corpus.bin", r"bin' is cut short: [\d,]+ bytes, "), ("corpus.idx", "idx")]
)
def test_a_corpus_cut_short_does_not_open(copy, name, message):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-100])
    with pytest.raises(ValueError, match=message):
        Corpus.open(copy)


def test_files_of_another_corpus_do_not_open(copy, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS[:20]))
    other = build(tmp_path / "a.txt", tmp_path / "other")
    for ending in ("bin", "idx"):
        shutil.copy(other.path / f"corpus.{ending}", copy)
    with pytest.raises(ValueError, match="are not those of its manifest"):
        Corpus.open(copy)


def test_a_changed_byte_is_found_by_verify(copy):
    content = bytearray((copy / "corpus.bin").read_bytes())
    content[5000] ^= 1
    (copy / "corpus.bin").write_bytes(content)
    opened = Corpus.open(copy)
    with pytest.raises(ValueError, match=r"corpus\.bin' is damaged: its bytes have changed \(xxh3 \w+, expected \w+\)"):
        opened.verify()


def test_a_broken_manifest_does_not_open(copy):
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json' is broken"):
        Corpus.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no prepared corpus"):
        Corpus.open(copy)


def test_another_tokenizer_in_its_place_is_noticed(made, copy, tmp_path):
    other = tokenizer.train(TEXTS, 1000, tmp_path / "other", kind="unigram")
    with pytest.raises(ValueError, match=r"is not the one .* was made with: leave it out"):
        Corpus.open(copy, tokenizer=tmp_path / "other")
    other.save_pretrained(copy / "tokenizer")
    with pytest.raises(ValueError, match=r"is not the one .* was made with .*put that one back"):
        _ = Corpus.open(copy).tokenizer
    with pytest.raises(ValueError, match="put that one back"):
        Corpus.open(copy).verify()


@pytest.fixture
def foreign(made, tmp_path):
    """A corpus as Megatron's own tools leave it: several sequences a document, no [SEP], no manifest."""
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "old_text_document.bin"), dtype=np.int32)
    for document in ([[10, 11, 12], [13]], [[14, 15]]):
        builder.add_document(np.concatenate(document), [len(sequence) for sequence in document])
    builder.finalize(str(tmp_path / "old_text_document.idx"))
    return tmp_path / "old_text_document"


def test_a_corpus_made_elsewhere_is_read_as_it_is(made, foreign):
    opened = Corpus.open(foreign, tokenizer=made.path / "tokenizer")
    assert opened.tokens.tolist() == [10, 11, 12, 13, 14, 15]
    assert opened.document_starts.tolist() == [0, 4]
    assert opened.manifest is None and opened.tokenizer_fingerprint == made.tokenizer_fingerprint
    opened.verify()
    with pytest.raises(ValueError, match="names no tokenizer: give the one it was made with"):
        Corpus.open(foreign)
    shutil.copytree(made.path / "tokenizer", foreign.parent / "tokenizer")
    assert Corpus.open(f"{foreign}.bin").fingerprint == opened.fingerprint


def test_a_corpus_made_elsewhere_with_ids_beyond_the_tokenizer_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_BLOCK", 10)
    monkeypatch.setattr(corpus, "_PLACES", 3)
    ids = np.full(100, 7)
    for place, opens in ((45, False), (30, True)):
        ids[:] = 7
        ids[place] = 1000
        builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=np.int32)
        builder.add_document(ids, [100])
        builder.finalize(str(tmp_path / "x.idx"))
        with pytest.raises(ValueError, match=r"has the token id 1000 near token .*its tokenizer 1000 entries"):
            opened = Corpus.open(tmp_path / "x", tokenizer=made.path / "tokenizer")
            assert opens
            opened.verify()


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no corpus '.*nowhere'.*prepare_corpus.py --input TEXT --output .*nowhere`"
    ):
        Corpus.open(tmp_path / "nowhere")
