"""What a training step on a CPU frees is kept for the next step.

The C library gives every block of 32 MiB and more back to the system as soon as it is freed, and the top of its heap.
The next step asks for the same memory again, and the system blanks it a page of 4 KiB at a time: 52 to 95 thousand of
them for 8 x 512 tokens of `base` (LOG.md). Kept, a process holds what it held at its peak. Shapes are static in
training, and the pieces fit; where they are not, pieces that fit nothing pile up (to twice the peak and more).
"""

import ctypes

_TRIM_THRESHOLD, _MOST_MAPPED_BLOCKS = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


def keep_freed() -> bool:
    """Have the C library keep what is freed; whether it can (glibc's can)."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and bool(adjust(_TRIM_THRESHOLD, -1) and adjust(_MOST_MAPPED_BLOCKS, 0))
