"""The index of a Megatron indexed corpus (.idx beside .bin): which tokens are a document.

Read here from its bytes, with every length checked against the others, rather than by `IndexedDataset`, which ends in a
bare assertion when a file is cut short and takes three seconds to import. The layout (megatron-core 0.16,
`megatron.core.datasets.indexed_dataset`), little-endian: "MMIDIDX\\0\\0", version 1 as uint64, a code for the tokens'
type as uint8, the number S of sequences and D of document bounds as uint64; then the sequences' lengths in tokens
(int32, S) and offsets in bytes (int64, S), and the sequence at which each document ends, from 0 (int64, D).
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


class Index(NamedTuple):
    """Where the documents of a .bin lie in its flat stream of tokens."""

    dtype: np.dtype[Any]
    num_tokens: int
    document_starts: NDArray[np.int64]  # (D,) offset of each document's first token; documents without tokens left out


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
    with idx_path.open("rb") as stream:
        stream.seek(_HEADER.size)
        lengths = np.fromfile(stream, dtype="<i4", count=sequences)
        pointers = np.fromfile(stream, dtype="<i8", count=sequences)
        ends = np.fromfile(stream, dtype="<i8", count=bounds)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    if (lengths < 0).any() or not np.array_equal(pointers, offsets[:-1] * dtype.itemsize):
        raise _broken(idx_path, "the offsets of its sequences do not follow from their lengths")
    if bounds == 0 or ends[0] != 0 or ends[-1] != sequences or (np.diff(ends) < 0).any():
        raise _broken(idx_path, f"its documents do not divide its {sequences:,} sequences")
    num_tokens = int(offsets[-1])
    actual, expected = bin_path.stat().st_size, num_tokens * dtype.itemsize
    if actual != expected:
        what = "is cut short" if actual < expected else "is too long"
        raise ValueError(
            f"{str(bin_path)!r} {what}: {actual:,} bytes, {expected:,} expected. Fetch or prepare it again"
        )
    starts = offsets[ends]
    return Index(dtype, num_tokens, starts[:-1][np.diff(starts) > 0])


def _broken(path: Path, what: str) -> ValueError:
    return ValueError(f"{str(path)!r} is no index that can be read: {what}. Fetch or prepare it again")
