"""The index is read as megatron-core writes it, and nothing that contradicts itself is accepted."""

import os
import struct
import tracemalloc
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast_electra.corpora import megatron_index
from fast_electra.corpora.megatron_index import narrowest_dtype, read_index

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder


def write(folder, documents, dtype=np.uint16):
    """Documents are lists of sequences, sequences lists of ids."""
    builder = IndexedDatasetBuilder(str(folder / "c.bin"), dtype=dtype)
    for document in documents:
        builder.add_document(np.array([id_ for sequence in document for id_ in sequence]), list(map(len, document)))
    builder.finalize(str(folder / "c.idx"))
    return folder / "c"


@settings(max_examples=60, deadline=None)
@given(
    block=st.integers(1, 4),
    documents=st.lists(st.lists(st.lists(st.integers(0, 200), max_size=5), max_size=4), min_size=1, max_size=6),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64]),
)
def test_documents_begin_where_megatron_says(tmp_path_factory, block, documents, dtype):
    """However many are looked at together."""
    folder = tmp_path_factory.mktemp("index")
    flat = [[id_ for sequence in document for id_ in sequence] for document in documents]
    prefix = write(folder, documents, dtype)
    with mock.patch.object(megatron_index, "_BLOCK", block):
        index = read_index(prefix)
        starts = index.document_starts()
    assert index.dtype == dtype
    assert index.num_tokens == sum(map(len, flat))
    tokens = np.fromfile(folder / "c.bin", dtype=index.dtype)
    found = np.split(tokens, starts[1:]) if len(starts) else []
    assert len(found) == index.num_documents
    assert [piece.tolist() for piece in found] == [document for document in flat if document]


def test_megatron_reads_the_same_sequences(tmp_path):
    prefix = write(tmp_path, [[[1, 2, 3], [4]], [[5, 6]]])
    index, megatron = read_index(prefix), IndexedDataset(str(prefix))
    starts = megatron.index.sequence_pointers[megatron.document_indices[:-1]] // 2
    assert index.document_starts().tolist() == starts.tolist() == [0, 4]


@pytest.mark.parametrize("vocab_size", [100, 65_499, 65_500, 250_000])
def test_the_type_of_the_ids_is_megatrons_choice(vocab_size):
    assert narrowest_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


@pytest.fixture
def prefix(tmp_path):
    return write(tmp_path, [[[1, 2, 3], [4]], [[5, 6]]])


def test_an_index_of_many_documents_is_not_read_whole(tmp_path):
    count = 1 << 22
    with (tmp_path / "c.idx").open("wb") as index:
        index.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 1, count, count + 1))
        np.ones(count, dtype="<i4").tofile(index)
        np.arange(count, dtype="<i8").tofile(index)
        np.arange(count + 1, dtype="<i8").tofile(index)
    (tmp_path / "c.bin").touch()
    os.truncate(tmp_path / "c.bin", count)
    tracemalloc.start()
    found = read_index(tmp_path / "c")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.num_documents == count
    assert peak < (tmp_path / "c.idx").stat().st_size / 2, "84 MB, of which a block at a time"


def change(path, offset, new):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(new)] = new
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_half_is_named(prefix, ending):
    prefix.with_suffix(ending).unlink()
    with pytest.raises(FileNotFoundError, match=rf"c\{ending}'.*fetch both"):
        read_index(prefix)


@pytest.mark.parametrize("size", [0, 20, 40, 85])
def test_a_shortened_index_is_refused(prefix, size):
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"c\.idx' is no index that can be read"):
        read_index(prefix)


@pytest.mark.parametrize(
    ("change_by", "message"), [(-2, r"is cut short: 10 bytes, 12 expected"), (2, "is too long: 14")]
)
def test_a_bin_of_another_size_is_refused(prefix, change_by, message):
    path = prefix.with_suffix(".bin")
    path.write_bytes((path.read_bytes() + b"xx")[: 12 + change_by])
    with pytest.raises(ValueError, match=rf"c\.bin' {message}"):
        read_index(prefix)


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [
        (0, b"PAR1", "not a Megatron index"),
        (9, b"\x02", "version 2 and token type 8"),
        (17, b"\x63", "version 1 and token type 99"),
        (26, b"\xff" * 8, "is cut short"),
        (34, b"\x09", "offsets of its sequences do not follow"),
        (46, b"\x08", "offsets of its sequences do not follow"),
        (70, b"\x01", "documents do not divide"),
        (78, b"\x09", "documents do not divide"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(prefix, offset, new, message):
    change(prefix.with_suffix(".idx"), offset, new)
    with pytest.raises(ValueError, match=message):
        read_index(prefix)
