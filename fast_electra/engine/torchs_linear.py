"""A frozen model computes with torch's own linear layer, whatever ZeRO puts in its place.

Building a model under ZeRO-3 leaves another linear layer in the whole process, which spares memory in backward and
rounds a bf16 bias apart: a frozen model's samples would depend on the ZeRO stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn import functional

LINEAR = functional.linear  # as this module is imported, before anything is built


def kept(frozen: nn.Module) -> nn.Module:
    """The same frozen model, computing so."""
    frozen.forward = _in_place()(frozen.forward)
    return frozen


@contextmanager
def _in_place() -> Iterator[None]:
    replaced, functional.linear = functional.linear, LINEAR
    try:
        yield
    finally:
        functional.linear = replaced
