import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

_FAULTS = """
import resource, sys
import torch
from fast_electra.engine import heap

if sys.argv[1] == "kept":
    assert heap.keep_freed()
for step in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(size * 2**18) for size in (8, 48, 100)]  # MiB
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_blanked(how):
    """In the last of some steps that ask for 156 MiB, 40 thousand pages, each; the first ones find places."""
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's malloc")
@pytest.mark.skipif(
    _HUGE_PAGES.exists() and "[always]" in _HUGE_PAGES.read_text(), reason="pages are of 2 MiB here, and few"
)
def test_a_step_finds_the_memory_that_the_one_before_freed():
    assert pages_blanked("given back") > 30_000
    assert pages_blanked("kept") < 100
