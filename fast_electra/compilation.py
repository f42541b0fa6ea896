"""torch.compile, part by part: each layer of a stock model by itself, and what stands around the layers.

Layers alike share one graph, so that a model of 48 layers is ready as soon as one of 12: whole, base took 34 s on an
H200 and large was not ready in 110; in parts both take 21, and a step no longer than before (LOG.md). Shapes are
static. What is small and torch's own outside the layers (a last norm, a classifier) runs as it is.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fast_electra import gated_gelu

MOST_GRAPHS = 64  # of one function: first layers and others, with gradients and without, of each model
OVER_THE_VOCABULARY = ("cross_entropy", "sample")  # functions that a module of ours may hold as attributes


def compile_parts(module: nn.Module, layers_alone: bool = False) -> None:
    """Have the parts of the stock models in `module`, and its passes over the vocabulary, compiled when first called.

    With `layers_alone`, as under ZeRO-3, which gathers those as wholes, what stands around them is left as it is. On
    CUDA gated feed-forward layers take our kernel, for what the compiler makes of them is slower.
    """
    if any(weight.is_cuda for weight in module.parameters()):
        gated_gelu.install(module)
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    for part in layers(module) if layers_alone else parts(module):
        part.forward = torch.compile(part.forward, dynamic=False)
    for each in module.modules():
        for name in OVER_THE_VOCABULARY:
            if hasattr(each, name):
                setattr(each, name, torch.compile(getattr(each, name), dynamic=False))


def layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the stock models in `module`."""
    return [each for each in module.modules() if isinstance(each, GradientCheckpointingLayer)]


def parts(module: nn.Module) -> Iterator[nn.Module]:
    """What is compiled: the layers, and the largest modules of the stock models that have weights and no layers."""
    if isinstance(module, GradientCheckpointingLayer):
        yield module
    elif not isinstance(module, PreTrainedModel) and not layers(module):
        if not type(module).__module__.startswith("torch.nn.") and any(True for _ in module.parameters()):
            yield module
    else:
        for child in module.children():
            yield from parts(child)
