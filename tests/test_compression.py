"""Packed files are unpacked whole or refused: by their first bytes, with several parts, never cut short unnoticed."""

import bz2
import gzip
import lzma
import os
import random

import pytest
import zstandard

from fast_electra.files.compression import detect, read_bytes

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress, "": bytes}
ZIPPED = gzip.compress(b"x", mtime=0)  # the time would stand in a test's name, another one in each worker
CONTENT = random.Random(0).randbytes(400_000) + b"text " * 50_000


def stored(folder, content, name):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_what_was_packed_comes_out_in_blocks(tmp_path, suffix):
    path = stored(tmp_path, PACK[suffix](CONTENT), "a.txt" + suffix)
    counted = []
    blocks = list(read_bytes(path, counted.append))
    assert b"".join(blocks) == CONTENT
    assert len(blocks) > 1
    assert sum(counted) == path.stat().st_size
    assert detect(path) == suffix


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_an_archive_of_several_parts_is_read_to_its_end(tmp_path, suffix):
    parts = [CONTENT[:70_000], b"", CONTENT[70_000:]]
    padding = b"\0" * 8 if suffix != ".zst" else b""
    path = stored(tmp_path, b"".join(PACK[suffix](part) for part in parts) + padding, "a" + suffix)
    assert b"".join(read_bytes(path)) == CONTENT


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kept", [0.5, 0.99999])
def test_an_archive_cut_short_is_an_error(tmp_path, suffix, kept):
    packed = PACK[suffix](CONTENT)
    path = stored(tmp_path, packed[: int(kept * len(packed))], "a" + suffix)
    with pytest.raises(ValueError, match=r"a\.\w+' is cut short: after [\d,]+ bytes"):
        list(read_bytes(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_an_archive_with_a_changed_byte_or_a_foreign_tail_is_an_error(tmp_path, suffix):
    # a checksum over the content is in .gz and .xz always, in .zst if its writer put it there (the zstd tool does)
    pack = PACK[suffix] if suffix != ".zst" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(CONTENT))
    packed[50_000] ^= 0x55
    with pytest.raises(ValueError, match="is damaged within its first"):
        list(read_bytes(stored(tmp_path, bytes(packed), "changed" + suffix)))
    with pytest.raises(ValueError, match="is damaged within its first"):
        list(read_bytes(stored(tmp_path, pack(CONTENT) + b"and something else", "tail" + suffix)))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".gz", b"plain text"), (".xz", ZIPPED), (".txt", ZIPPED), (".zst", b"PAR1.....")],
)
def test_a_name_that_lies_about_the_compression_is_refused(tmp_path, suffix, content):
    path = stored(tmp_path, content, "a" + suffix)
    with pytest.raises(ValueError, match="rename it to what it is"):
        detect(path)


def test_other_archives_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"\.bz2 archive.*unpack it"):
        detect(stored(tmp_path, bz2.compress(b"x"), "a.bz2"))


@pytest.mark.parametrize("suffix", ["", ".gz", ".txt"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"is empty \(0 bytes\)"):
        detect(stored(tmp_path, b"", "a" + suffix))


def test_a_missing_file_a_pipe_and_a_forbidden_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such input: .*nowhere\.txt"):
        detect(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        detect(tmp_path / "pipe")
    path = stored(tmp_path, b"x", "secret.txt")

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", forbidden)  # root may read anything, so chmod shows nothing here
    with pytest.raises(PermissionError, match=r"secret\.txt' cannot be read"):
        detect(path)
