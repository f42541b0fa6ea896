"""A manifest comes back as it was written, and a broken one says which field is wrong."""

import dataclasses
import json

import pytest
import xxhash

from fast_electra.corpora.manifest import FILE_NAME, FileRecord, Manifest, hash_file

RECORDS = [FileRecord("corpus.bin", 10, "a" * 32), FileRecord("corpus.idx", 20, "b" * 32)]
MANIFEST = Manifest(
    format=1,
    documents=2,
    tokens=5,
    text_bytes=9,
    vocab_size=512,
    end_token_id=3,
    dtype="uint16",
    tokenizer_fingerprint="c" * 32,
    files=RECORDS,
    inputs=[FileRecord("\u00e9.txt", 9, "d" * 32)],
    settings={"text_key": "text"},
    dropped={"empty_documents": 0},
    libraries={"numpy": "2"},
    workers=2,
    seconds=1.5,
    megabytes_per_second_per_worker=2.0,
)


def test_it_comes_back_as_it_was_written(tmp_path):
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert "\u00e9.txt" in (tmp_path / FILE_NAME).read_text(encoding="utf-8")


def remove(content, *place):
    *outer, last = place
    for key in outer:
        content = content[key]
    del content[last]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(tokens="5"), r"tokens is '5', a str where a int belongs"),
        (lambda c: c.update(tokens=5.0), r"tokens is 5\.0, a float where a int belongs"),
        (lambda c: c.update(documents=True), r"documents is True, a bool where a int"),
        (lambda c: c.update(documents=-1), r"documents is -1, which is not 0 or more"),
        (lambda c: c.update(seconds=None), r"seconds is None"),
        (lambda c: c.update(files={}), r"files is \{\}, a dict where a list"),
        (lambda c: c.update(dropped={"cuts": "many"}), r"dropped\['cuts'\] is 'many'"),
        (lambda c: c.update(colour="red"), r"unknown: \['colour'\]"),
        (lambda c: remove(c, "dtype"), r"missing: \['dtype'\]"),
        (lambda c: remove(c, "files", 1, "size_bytes"), r"files\[1\] has fields missing: \['size_bytes'\]"),
        (lambda c: c.update(format=2), r"format is 2, this version reads 1"),
        (lambda c: c.update(settings=[]), r"settings is \[\], a list where a dict"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, damage, message):
    content = dataclasses.asdict(MANIFEST)
    damage(content)
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"manifest\.json' is broken: .*{message}.*prepare the corpus again"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"", b"null"])
def test_what_is_no_manifest_at_all_is_refused(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json' is broken"):
        Manifest.read(tmp_path)


def test_a_folder_without_one_is_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no prepared corpus.*prepare_corpus\.py"):
        Manifest.read(tmp_path)


def test_the_same_build_is_the_same_contents_and_settings(tmp_path):
    renamed = [dataclasses.replace(MANIFEST.inputs[0], name="elsewhere.txt")]
    assert MANIFEST.same_build(renamed, MANIFEST.settings)
    assert not MANIFEST.same_build([*renamed, *renamed], MANIFEST.settings)
    assert not MANIFEST.same_build(renamed, {"text_key": "body"})
    assert not MANIFEST.same_build([dataclasses.replace(renamed[0], xxh3_128="e" * 32)], MANIFEST.settings)


def test_the_fingerprint_follows_the_files_and_nothing_else():
    slower = dataclasses.replace(MANIFEST, seconds=99.0)
    changed = dataclasses.replace(MANIFEST, files=[RECORDS[0], dataclasses.replace(RECORDS[1], xxh3_128="f" * 32)])
    assert MANIFEST.fingerprint == slower.fingerprint != changed.fingerprint


def test_files_are_hashed_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("fast_electra.corpora.manifest._BLOCK", 7)
    (tmp_path / "file").write_bytes(b"some bytes, more than seven")
    assert hash_file(tmp_path / "file") == xxhash.xxh3_128_hexdigest(b"some bytes, more than seven")
