"""A shard of replacement paths, read through a memory map of its file:

uint32  offsets of its rows from the start of the file, and of the end of the last
...     the rows (replacement_codec.py)
8 bytes xxh3 of all that precedes
"""

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fast_electra.files import random_reads
from fast_electra.replacements.replacement_codec import Bytes

DIGEST_BYTES = 8


def shard_path(folder: Path, shard: int) -> Path:
    """Where a folder keeps a shard."""
    return folder / f"shard-{shard:05d}.bin"


class Shard(NamedTuple):
    """A shard, its hash found right if it was `hashed`: where its rows begin and end (R + 1,), the bytes of the file,
    its hash in hex."""

    offsets: NDArray[np.uint32]
    data: Bytes
    digest: str

    @classmethod
    def read(cls, path: Path, num_rows: int, hashed: bool = True) -> "Shard":
        """The shard of `num_rows` rows in a file. Raises ValueError where it is damaged or not there."""
        size = path.stat().st_size if path.is_file() else 0
        if size > 4 * (num_rows + 1) + DIGEST_BYTES:
            with path.open("rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
            digest = data[-DIGEST_BYTES:].tobytes()
            if not hashed or digest == xxhash.xxh3_64_digest(data[:-DIGEST_BYTES].data):
                random_reads.expect(data)  # not before it was read from end to end
                return cls(data[: 4 * (num_rows + 1)].view("<u4"), data[:-DIGEST_BYTES], digest.hex())
        raise ValueError(
            f"{path} ({size} bytes) is damaged: its hash differs; delete it and run the precomputation again"
        )

    def row(self, row: int) -> memoryview:
        """The bytes of a row."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].data
