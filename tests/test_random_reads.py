"""What the kernel is told, by a memory map that takes note."""

import mmap

import numpy as np
import pytest

from fast_electra.files import random_reads

PAGE = mmap.PAGESIZE


class Noted(mmap.mmap):
    refuses = False

    def madvise(self, *advice):
        if self.refuses:
            raise OSError("not here")
        self.told = [*getattr(self, "told", []), advice]
        super().madvise(*advice)


@pytest.fixture
def noted(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes(bytes(8 * PAGE))
    with path.open("rb") as file:
        return Noted(file.fileno(), 0, access=mmap.ACCESS_READ)


def test_a_map_is_expected_to_be_read_at_random(noted):
    random_reads.expect(np.frombuffer(noted, dtype=np.uint16)[7:])
    assert noted.told == [(mmap.MADV_RANDOM,)]


def test_the_whole_pages_of_each_row_are_asked_for_wherever_the_array_begins_in_its_map(noted):
    tokens = np.frombuffer(noted, dtype=np.uint16)
    random_reads.foresee(tokens, [3, PAGE - 1, 4 * PAGE - 2], np.array([5, PAGE + 1, 4 * PAGE], dtype=np.uint32))
    expected = [(0, 10), (PAGE, PAGE + 2), (7 * PAGE, PAGE)]
    assert noted.told == [(mmap.MADV_WILLNEED, *each) for each in expected]
    noted.told.clear()
    random_reads.foresee(tokens[PAGE // 2 :].view(np.uint8), [0, PAGE + 1], [1, PAGE + 2])
    assert noted.told == [(mmap.MADV_WILLNEED, *each) for each in ((PAGE, 1), (2 * PAGE, 2))]


def test_a_memmap_of_numpy_is_a_map_and_an_array_in_memory_none(noted, tmp_path):
    assert isinstance(random_reads._map_of(np.memmap(tmp_path / "tokens", dtype=np.uint16, mode="r")[5:]), mmap.mmap)
    assert random_reads._map_of(np.zeros(5)[2:]) is None
    random_reads.expect(np.zeros(5))
    random_reads.foresee(np.zeros(5), [0], [1])


def test_advice_that_is_not_taken_or_not_known_is_let_be(noted, monkeypatch):
    tokens, noted.refuses = np.frombuffer(noted, dtype=np.uint16), True
    random_reads.expect(tokens)
    random_reads.foresee(tokens, [0], [1])
    noted.refuses = False
    monkeypatch.delattr(mmap, "MADV_RANDOM")
    monkeypatch.delattr(mmap, "MADV_WILLNEED")
    random_reads.expect(tokens)
    random_reads.foresee(tokens, [0], [1])
    assert not hasattr(noted, "told")
