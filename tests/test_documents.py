"""Documents come out of every kind of input whole and in order; what is not text is refused with its place."""

import gzip
import json
import lzma
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra.corpora import documents
from fast_electra.corpora.documents import Tally, list_sources, read_documents

TEXTS = ["One line.", "Two\nlines \u2014 caf\u00e9.", "\U0001f600 third"]
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


def parquet_bytes(texts, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), sink, **options)
    return sink.getvalue().to_pybytes()


CONTENT = {
    "a.txt": "\n\n".join(TEXTS).encode(),
    "a.jsonl": "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS).encode(),
    "a.parquet": parquet_bytes(TEXTS),
}


def stored(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", CONTENT)
def test_each_format_gives_its_documents_packed_or_not(tmp_path, name, suffix):
    path = stored(tmp_path, name + suffix, PACK[suffix](CONTENT[name]))
    tally = Tally()
    assert list(read_documents(path, tally=tally)) == TEXTS
    assert tally == Tally(stored_bytes=path.stat().st_size)


def test_lines_that_look_blank_end_documents_and_others_do_not(tmp_path):
    text = "\ufeff\n\n first\r\nsecond\r\n \t \r\n\n\n\nthird\x0bstill\u2028third\n\u00a0\nfourth\n"
    path = stored(tmp_path, "a", text)
    assert list(read_documents(path)) == [" first\nsecond", "third\x0bstill\u2028third", "fourth"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab\u00e9\U0001f600 \t\r\n")), block=st.integers(1, 9))
def test_where_the_blocks_end_does_not_matter(tmp_path_factory, text, block):
    def read(size):
        content = text.encode()
        blocks = [content[i : i + size] for i in range(0, len(content), size)]
        return list(documents._plain_texts(documents._decode(blocks, tmp_path_factory.getbasetemp()), Tally()))

    assert read(block) == read(10**6)


def test_a_folder_is_all_its_visible_files_by_name(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    stored(tmp_path, "c.txt", "c")
    stored(tmp_path / "b", "x.jsonl.gz", gzip.compress(b'{"text": "b"}'))
    stored(tmp_path, "a.parquet", parquet_bytes(["a"]))
    stored(tmp_path, ".hidden", "no")
    stored(tmp_path / "b" / ".git", "config", "no")
    assert list(read_documents(tmp_path)) == ["a", "b", "c"]
    assert [source.removeprefix(str(tmp_path)) for source in list_sources([tmp_path, tmp_path / "c.txt"])] == [
        "/a.parquet",
        "/b/x.jsonl.gz",
        "/c.txt",
        "/c.txt",
    ]


def test_an_input_that_cannot_be_read_is_found_before_the_first_is_opened(tmp_path):
    good = stored(tmp_path, "good.txt", "text")
    (tmp_path / "empty_folder").mkdir()
    stored(tmp_path, "empty.txt", "")
    with pytest.raises(ValueError, match=r"empty\.txt' is empty"):
        list_sources([good, tmp_path / "empty.txt"])
    with pytest.raises(ValueError, match="holds no files"):
        list_sources([good, tmp_path / "empty_folder"])
    with pytest.raises(FileNotFoundError, match="no such input"):
        list_sources([good, tmp_path / "missing"])


def test_documents_without_text_are_dropped_and_counted(tmp_path):
    tally = Tally()
    lines = ['{"text": ""}', '{"text": " \\n"}', '{"text": null}', "", '{"text": "kept"}']
    assert list(read_documents(stored(tmp_path, "a.jsonl", "\n".join(lines)), tally=tally)) == ["kept"]
    assert tally.empty_documents == 3
    path = stored(tmp_path, "a.parquet", parquet_bytes(["", None, "kept"]))
    assert list(read_documents(path, tally=tally)) == ["kept"]
    assert tally.empty_documents == 5


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_an_overlong_document_is_cut_at_spaces_and_counted(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 1000)
    words = [str(random.Random(1).randrange(10**9)) for _ in range(20_000)]
    text = " ".join(words)
    content = {"a.txt": text, "a.jsonl": json.dumps({"text": text}), "a.parquet": parquet_bytes([text])}[name]
    tally = Tally()
    pieces = list(read_documents(stored(tmp_path, name, content), tally=tally))
    assert " ".join(pieces).split() == words
    assert max(map(len, pieces)) <= 1000 and min(map(len, pieces[:-1])) > 900
    assert tally.cuts == len(pieces) - 1


def test_an_overlong_word_is_cut_too(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 1000)
    pieces = list(read_documents(stored(tmp_path, "a.txt", "x" * 3500 + " y")))
    assert [len(piece) for piece in pieces] == [1000, 1000, 1000, 502]


def test_one_line_of_many_megabytes_does_not_fill_memory(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(random.Random(2).randbytes(10_000_000).hex(" ", 8).encode(), compresslevel=1))
    tracemalloc.start()
    tally = Tally()
    characters = sum(map(len, read_documents(path, tally=tally)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert characters + tally.cuts == 21_249_999
    assert peak < 12e6


def test_a_binary_file_is_refused_with_the_offset_of_the_byte(tmp_path):
    path = stored(tmp_path, "a.txt", "\u00e9".encode() * 70_000 + b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt' is not UTF-8 text: byte 0xff at offset 140,000 .*iconv"):
        list(read_documents(path))
    path = stored(tmp_path, "b.txt", "\u00e9".encode() * 40_000 + b"ab\0")
    with pytest.raises(ValueError, match=r"byte 0x00 at offset 80,002"):
        list(read_documents(path))


def test_a_character_cut_at_a_block_or_the_end_is_reported_where_it_begins(tmp_path):
    path = stored(tmp_path, "a.txt", b"x" * 65_535 + b"\xe2(x")
    with pytest.raises(ValueError, match=r"byte 0xe2 at offset 65,535"):
        list(read_documents(path))
    with pytest.raises(ValueError, match=r"byte 0xe2 at offset 3 "):
        list(read_documents(stored(tmp_path, "b.txt", b"abc\xe2\x82")))


def test_a_parquet_file_under_another_name_is_refused_as_binary(tmp_path):
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        list(read_documents(stored(tmp_path, "a.txt", CONTENT["a.parquet"])))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", r"line 2 of .*a\.jsonl' is not JSON .*one object a line"),
        ('["text"]', r"line 2 of .* is a JSON list"),
        ('{"body": "x", "id": 1}', r"line 2 of .* has no key 'text', only \['body', 'id'\]: .* --text_key body$"),
        ('{"text": 3}', r"line 2 of .* has a int under 'text'"),
        ('{"text": "\\ud800"}', r"line 2 of .* holds half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    path = stored(tmp_path, "a.jsonl", '{"text": "good \\ud83d\\ude00"}\n' + line)
    with pytest.raises(ValueError, match=message):
        list(read_documents(path))


def test_the_key_of_the_text_can_be_chosen(tmp_path):
    path = stored(tmp_path, "a.json", '{"body": "x", "text": "y"}')
    assert list(read_documents(path, key="body")) == ["x"]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": pa.array(["x"]).dictionary_encode(), "n": [1], "many": [["y"]]}), path)
    assert list(read_documents(path, key="body")) == ["x"]
    for key in ("text", "n", "many"):
        with pytest.raises(ValueError, match=rf"no column '{key}' of text, but body \(dict"):
            list(read_documents(path, key=key))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-30],
        lambda content: content[:-3000] + b"\x55" * 20 + content[-2980:],
        lambda content: content.replace(b"number 500", b"number 5x0"),  # readable, but its checksum tells
        lambda content: b"text",
    ],
)
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    texts = [f"some text number {number}" for number in range(1000)]
    path = stored(tmp_path, "a.parquet", damage(parquet_bytes(texts, write_page_checksum=True, compression="none")))
    with pytest.raises(ValueError, match=r"a\.parquet' is no readable Parquet file"):
        list(read_documents(path))
