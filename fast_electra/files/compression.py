"""The bytes of a file, unpacked as they are read: plain, .gz, .xz or .zst, told by the file's first bytes.

A name that says otherwise is an error, since one of the two is wrong and guessing hides it. One loop serves all three
formats: it reads archives of several parts (`cat a.gz b.gz`, pigz, `xz -T`, `zstd -T`), it notices an archive that
ends too early (zstandard's own stream reader takes the cut for the end), and it unpacks little at a time, so that
100 MB of one letter, which are 20 kB as stored, do not become one block.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

SUFFIXES = (".gz", ".xz", ".zst")

_BLOCK = 1 << 16  # stored bytes read at once, and unpacked ones handed on together
_PIECE = 1 << 7  # stored bytes unpacked at once: they become at most 0.1 MB (gzip), 1 MB (xz) or 4 MB (zstd)
_XZ_BYTES = 1 << 30  # memory that an archive may ask for; `xz -9` takes 65 MB
# First bytes, the name's ending, and a maker of decompressors (None: known, but not read here).
_FORMATS: tuple[tuple[bytes, str, Callable[[], Any] | None], ...] = (
    (b"\x1f\x8b", ".gz", lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\x00", ".xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_BYTES)),
    (b"\x28\xb5\x2f\xfd", ".zst", lambda: zstandard.ZstdDecompressor().decompressobj()),
    (b"BZh", ".bz2", None),
    (b"PK\x03\x04", ".zip", None),
    (b"7z\xbc\xaf\x27\x1c", ".7z", None),
)


def detect(path: Path) -> str:
    """The compression of a file: ".gz", ".xz", ".zst" or "" for none.

    Raises FileNotFoundError, PermissionError, and ValueError for what is no regular file, is empty, is packed in a
    format that is not read here, or is named for another compression than its first bytes show.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such input: {str(path)!r}. Check the path, relative to {str(Path.cwd())!r}")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a regular file: write its content to a file first, it is read twice")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except PermissionError as error:
        raise PermissionError(
            f"{str(path)!r} cannot be read ({error.strerror}): give this user the right to"
        ) from error
    if not head:
        raise ValueError(f"{str(path)!r} is empty (0 bytes): remove it from the inputs, or fetch it again")
    found, supported = next(((ending, make) for magic, ending, make in _FORMATS if head.startswith(magic)), ("", True))
    if not supported:
        raise ValueError(f"{str(path)!r} is a {found} archive, which is not read: unpack it, or use .gz, .xz or .zst")
    named = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ""
    if named != found:
        raise ValueError(
            f"{str(path)!r} is named for {named or 'no'} compression but its first bytes, {head.hex(' ')}, are those "
            f"of {found or 'no compressed file'}: fetch it again, or rename it to what it is"
        )
    return found


def read_bytes(path: Path, advance: Callable[[int], None] = lambda stored: None) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file block by block; `advance` is told how many stored bytes each block took.

    Raises what `detect` raises, and ValueError for an archive that is damaged or cut short, after what came before.
    """
    compression = detect(path)
    make = next((make for _, ending, make in _FORMATS if ending == compression), None)
    stored = _stored_blocks(path, advance)
    return _unpack(stored, make, path) if make else stored


def _stored_blocks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            advance(len(block))
            yield block


def _unpack(blocks: Iterator[bytes], make: Callable[[], Any], path: Path) -> Iterator[bytes]:
    held = bytearray()
    for unpacked in _unpacked(blocks, make, path):
        held += unpacked
        while len(held) >= _BLOCK:
            yield bytes(held[:_BLOCK])
            del held[:_BLOCK]
    if held:
        yield bytes(held)


def _unpacked(blocks: Iterator[bytes], make: Callable[[], Any], path: Path) -> Iterator[bytes]:
    part = make()
    consumed = 0
    for piece in (block[start : start + _PIECE] for block in blocks for start in range(0, len(block), _PIECE)):
        consumed += len(piece)
        while piece:
            if part.eof:  # another part follows; zero bytes between parts are padding
                piece = piece.lstrip(b"\x00")
                part = make() if piece else part
                continue
            try:
                yield part.decompress(piece)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, MemoryError) as error:
                raise ValueError(
                    f"{str(path)!r} is damaged within its first {consumed:,} bytes ({error}): fetch or pack it again"
                ) from error
            piece = part.unused_data
    if not part.eof:
        raise ValueError(
            f"{str(path)!r} is cut short: after {consumed:,} bytes the archive has no end. Fetch it again, or unpack "
            "what there is and give that"
        )
