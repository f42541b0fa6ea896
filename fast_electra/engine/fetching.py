"""Models and tokenizers that may come from a hub, loaded by many processes: one asks it, the others ask its cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants

from fast_electra.engine import parallel

Loaded = TypeVar("Loaded")


def in_turns(load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives: on the first process, then on the first of each machine, then on the others.

    All take part. Whoever comes later asks the cache alone; a machine whose cache is its own then asks the hub once.
    What `load` raises is raised where it was, and leaves no other process waiting.
    """
    turn = 0 if parallel.rank() == 0 else 1 if parallel.place_on_machine() == 0 else 2
    for _ in range(turn):
        parallel.barrier()
    try:
        with _offline(turn > 0):
            return load()
    except ValueError:
        if turn != 1:
            raise
        return load()
    finally:
        for _ in range(2 - turn):
            parallel.barrier()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, the libraries of the hub ask their cache alone."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
