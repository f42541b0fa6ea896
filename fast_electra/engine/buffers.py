"""Buffers of a model that DeepSpeed makes an engine of: where they lie, and in which numbers.

DeepSpeed casts them with the weights, under some ZeRO stages and not under others, and rotary frequencies in bf16 turn
far positions by wrong angles. Under ZeRO-3 it moves nothing to the device: zero.Init has made transformers' models
there, and a module of ours around them, with a buffer of its own, was made elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, DeepSpeed may do to the module what it will; all buffers lie on `device`, in the precision they had."""
    for each in module.modules():
        for name, buffer in each.named_buffers(recurse=False):
            setattr(each, name, buffer.to(device))
    exact = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    yield
    for name, buffer in module.named_buffers():
        if name in exact and buffer.dtype != exact[name].dtype:
            buffer.data = exact[name].to(buffer.device)
