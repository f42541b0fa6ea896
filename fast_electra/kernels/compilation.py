"""torch.compile, part by part: each layer of a stock model by itself, and what stands around the layers.

Layers alike share one graph, so that a model of 48 layers is ready as soon as one of 12: side by side on an H200,
base took 34 s whole and 21 in parts, large 22 (whole it was once not ready in 110), and a step no longer (LOG.md).
Shapes are static. What is small and torch's own outside the layers (a last norm, a classifier) runs as it is.
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fast_electra.kernels import gated_gelu

MOST_GRAPHS = 64  # of one function: first layers and others, with gradients and without, of each model
OVER_THE_VOCABULARY = ("cross_entropy", "sample")  # functions that a module of ours may hold as attributes


def missing(device: torch.device) -> str:
    """What torch's compiler lacks here to build for this device, or nothing.

    For a CPU it writes C++; Triton starts its kernels on a GPU through code in C.
    """
    if device.type == "cpu":
        if not (os.environ.get("CXX") or shutil.which("g++")):
            return "a C++ compiler"
    elif not has_triton():
        return "Triton (or a GPU that it knows)"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return "" if headers.is_file() else f"Python's headers ({headers})"


def parts(module: nn.Module, layers_alone: bool = False) -> list[nn.Module]:
    """What is compiled of the stock models in `module`: their layers, and the largest modules with weights around them.

    With `layers_alone`, as under ZeRO-3, which gathers those as wholes, the layers and no more.
    """
    if layers_alone:
        return [each for each in module.modules() if isinstance(each, GradientCheckpointingLayer)]
    return list(_parts(module))


def compile_parts(module: nn.Module, chosen: Sequence[nn.Module]) -> None:
    """Have these parts of `module`, and its passes over the vocabulary, compiled when they are first called.

    On CUDA gated feed-forward layers take our kernel, for what the compiler makes of them is slower.
    """
    if any(weight.is_cuda for weight in module.parameters()):
        gated_gelu.install(module)
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    for part in chosen:
        part.forward = torch.compile(part.forward, dynamic=False)
    for each in module.modules():
        for name in OVER_THE_VOCABULARY:
            if hasattr(each, name):
                setattr(each, name, torch.compile(getattr(each, name), dynamic=False))


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, GradientCheckpointingLayer):
        yield module
    elif not isinstance(module, PreTrainedModel) and not parts(module, layers_alone=True):
        if not type(module).__module__.startswith("torch.nn.") and any(True for _ in module.parameters()):
            yield module
    else:
        for child in module.children():
            yield from _parts(child)
