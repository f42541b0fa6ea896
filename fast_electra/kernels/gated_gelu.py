"""The gated GELU of ModernBERT's feed-forward layers, its gradient made in one pass.

`Wi` gives up and gate next to each other, (..., 2 I), and out goes gelu(up) * gate (Shazeer, arXiv 2002.05202; GELU in
its erf form). Their gradients have to end up next to each other too. Left to itself torch's compiler makes that a
kernel which computes both formulas at each place and throws one away: three times the time that reading and writing
takes (LOG.md). The kernel (gated_gelu_kernel.py) computes erf once and writes both. On a CPU torch does the same.
"""

import importlib
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP


def install(module: nn.Module) -> int:
    """Have the feed-forward layers in `module` run so, but those of another activation; returns how many do."""
    if torch.cuda.is_available():
        # It needs Triton, which torch for a CPU does not bring.
        importlib.import_module("fast_electra.kernels.gated_gelu_kernel")
    fitting = [
        each for each in module.modules() if isinstance(each, ModernBertMLP) and isinstance(each.act, GELUActivation)
    ]
    for each in fitting:
        each.forward = MethodType(_feed_forward, each)  # type: ignore[method-assign]
    return len(fitting)


def gated_gelu(hidden: Tensor) -> Tensor:
    """gelu(up) * gate (..., I) of `hidden` = [up, gate] (..., 2 I)."""
    out: Tensor = _GatedGelu.apply(hidden)  # type: ignore[no-untyped-call]
    return out


def gradient_in_torch(gradient: Tensor, hidden: Tensor) -> Tensor:
    """The gradient (..., 2 I) of `hidden`, from that (..., I) of the output; what the kernel computes, in float32."""
    given, (up, gate) = gradient.float(), hidden.float().chunk(2, dim=-1)
    share = 0.5 * (1 + torch.erf(up * 0.5**0.5))  # of the normal distribution below `up`
    density = torch.exp(-0.5 * up * up) * (2 * torch.pi) ** -0.5
    return torch.cat([given * gate * (share + up * density), given * up * share], dim=-1).to(hidden.dtype)


def _feed_forward(mlp: Any, hidden_states: Tensor) -> Tensor:
    """ModernBertMLP.forward."""
    out: Tensor = mlp.Wo(mlp.drop(gated_gelu(mlp.Wi(hidden_states))))
    return out


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        up, gate = hidden.chunk(2, dim=-1)
        return F.gelu(up) * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        if hidden.device.type == "cuda":
            in_one_pass: Tensor = torch.ops.fast_electra.gated_gelu_gradient(gradient, hidden)
            return in_one_pass
        return gradient_in_torch(gradient, hidden)
