"""The index of a Megatron indexed corpus (.idx beside .bin): which tokens are a document.

Read here from its bytes, with every length checked against the others, rather than by `IndexedDataset`, which ends in a
bare assertion when a file is cut short and takes three seconds to import. The layout (megatron-core 0.16,
`megatron.core.datasets.indexed_dataset`), little-endian: "MMIDIDX\\0\\0", version 1 as uint64, a code for the tokens'
type as uint8, the number S of sequences and D of document bounds as uint64; then the sequences' lengths in tokens
(int32, S) and offsets in bytes (int64, S), and the sequence at which each document ends, from 0 (int64, D).

An index of 10^9 documents of a sequence each has 20 GB: it is looked through in blocks, and what stays is a memory map.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_BLOCK = 1 << 20  # sequences or documents looked at together
_TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


@dataclass(frozen=True, eq=False)
class Index:
    """Where the documents of a .bin lie in its flat stream of tokens."""

    dtype: np.dtype[Any]
    num_tokens: int
    num_documents: int  # with at least one token
    pointers: NDArray[np.int64]  # (S,) memory map: offset of each sequence in bytes
    ends: NDArray[np.int64]  # (D,) memory map: the sequence at which each document ends, from 0

    def document_starts(self) -> NDArray[np.int64]:
        """The offset (num_documents,) of each document's first token; documents without tokens are left out."""
        starts, filled = np.empty(self.num_documents, dtype=np.int64), 0
        for found in _starts(self.dtype, self.num_tokens, self.pointers, self.ends):
            starts[filled : filled + len(found)] = found
            filled += len(found)
        return starts


def narrowest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type Megatron stores ids of a vocabulary in: uint16 below 65,500, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def read_index(prefix: Path) -> Index:
    """Read and check the index of `prefix`.bin.

    Raises FileNotFoundError if one of the two files is missing, and ValueError naming the file if the index is none, is
    cut short or contradicts itself, or if the .bin has not the size the index says.
    """
    bin_path, idx_path = (Path(f"{prefix}{ending}") for ending in (".bin", ".idx"))
    for path in (bin_path, idx_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"no {str(path)!r}: an indexed corpus is a .bin and an .idx of one name; fetch both"
            )
    size = idx_path.stat().st_size
    with idx_path.open("rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise _broken(idx_path, f"its first bytes are {head[:9]!r}, not a Megatron index's {_MAGIC!r}")
    _, version, code, sequences, bounds = _HEADER.unpack(head)
    if version != 1 or code not in _TOKEN_TYPES:
        raise _broken(idx_path, f"version {version} and token type {code} are not known (1, and {list(_TOKEN_TYPES)})")
    expected = _HEADER.size + 12 * sequences + 8 * bounds
    if size < expected:
        raise _broken(idx_path, f"it is cut short: {size:,} bytes, {expected:,} expected")
    return _checked_index(np.dtype(_TOKEN_TYPES[code]), (sequences, bounds), idx_path, bin_path)


def _checked_index(dtype: np.dtype[Any], counts: tuple[int, int], idx_path: Path, bin_path: Path) -> Index:
    sequences, bounds = counts
    raw = np.memmap(idx_path, dtype=np.uint8, mode="r")[_HEADER.size :]
    lengths = raw[: 4 * sequences].view("<i4")
    pointers = raw[4 * sequences : 12 * sequences].view("<i8")
    ends = raw[12 * sequences : 12 * sequences + 8 * bounds].view("<i8")
    num_tokens = 0
    for block in _blocks(sequences):
        offsets = num_tokens + np.concatenate(([0], np.cumsum(lengths[block], dtype=np.int64)))
        if (lengths[block] < 0).any() or not np.array_equal(pointers[block], offsets[:-1] * dtype.itemsize):
            raise _broken(idx_path, "the offsets of its sequences do not follow from their lengths")
        num_tokens = int(offsets[-1])
    if bounds == 0 or ends[0] != 0 or ends[-1] != sequences or not _ascend(ends):
        raise _broken(idx_path, f"its documents do not divide its {sequences:,} sequences")
    actual, expected = bin_path.stat().st_size, num_tokens * dtype.itemsize
    if actual != expected:
        what = "is cut short" if actual < expected else "is too long"
        raise ValueError(
            f"{str(bin_path)!r} {what}: {actual:,} bytes, {expected:,} expected. Fetch or prepare it again"
        )
    num_documents = sum(map(len, _starts(dtype, num_tokens, pointers, ends)))
    return Index(dtype, num_tokens, num_documents, pointers, ends)


def _starts(
    dtype: np.dtype[Any], num_tokens: int, pointers: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """The offset of each document's first token, of some documents at a time; of those that have tokens."""
    for block in _blocks(len(ends) - 1):
        bounds = ends[block.start : block.stop + 1]
        inside = bounds < len(pointers)
        offsets = np.full(len(bounds), num_tokens, dtype=np.int64)
        offsets[inside] = pointers[bounds[inside]] // dtype.itemsize
        yield offsets[:-1][np.diff(offsets) > 0]


def _ascend(ends: NDArray[np.int64]) -> bool:
    return all(
        (ends[block.start : block.stop] <= ends[block.start + 1 : block.stop + 1]).all()
        for block in _blocks(len(ends) - 1)
    )


def _blocks(count: int) -> Iterator[slice]:
    for first in range(0, count, _BLOCK):
        yield slice(first, min(first + _BLOCK, count))


def _broken(path: Path, what: str) -> ValueError:
    return ValueError(f"{str(path)!r} is no index that can be read: {what}. Fetch or prepare it again")
