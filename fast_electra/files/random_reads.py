"""Rows at random out of memory maps larger than memory: the kernel is told what will be read, and fetches that alone.

Left to itself, it takes a page that is missing for the beginning of a long read, fetches its surroundings (up to the
device's read-ahead: 1 to 8 MiB for a row of 1 KB) and makes the reader wait for them, row after row. Told of all
rows of a batch at once, it fetches their pages side by side while nobody waits. Whoever reads a map from end to end
gains by read-ahead and tells it nothing.

All is advice: where a map, a file system or a platform does not take it, rows are read as before.
"""

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def expect(array: NDArray[Any]) -> None:
    """From here on `array` (a part) of a memory map is read at random: what is not asked for is not fetched with it.

    It holds for the whole map.
    """
    source = _map_of(array)
    if source is not None and hasattr(mmap, "MADV_RANDOM"):
        with suppress(OSError):
            source.madvise(mmap.MADV_RANDOM)


def foresee(array: NDArray[Any], starts: ArrayLike, stops: ArrayLike) -> None:
    """Items `starts` to `stops - 1` (each (R,)) of a one-dimensional `array` are read next: their pages are fetched.

    Nothing waits for them. An array that is no memory map has them already.
    """
    source = _map_of(array)
    if source is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    offset = _address(array) - _address(np.frombuffer(source, dtype=np.uint8))
    first = offset + np.asarray(starts, dtype=np.int64) * array.itemsize
    end = offset + np.asarray(stops, dtype=np.int64) * array.itemsize
    first -= first % mmap.PAGESIZE
    with suppress(OSError):
        for start, length in zip(first.tolist(), (end - first).tolist(), strict=True):
            source.madvise(mmap.MADV_WILLNEED, start, length)


def _map_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The map in which the array lies, None for one in memory."""
    found: Any = array
    while found is not None and not isinstance(found, mmap.mmap):
        found = found.obj if isinstance(found, memoryview) else getattr(found, "base", None)
    return found


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
