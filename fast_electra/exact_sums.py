"""Gradients of norms and of tables summed over a micro-batch's tokens in float32, where a CPU sums them in bf16.

torch's CPU kernels add a norm's weight gradients, and the rows of an embedding's, in the dtype of the weight. In bf16 a
sum of terms of like sign stands still after a few hundred of them: at 32,768 tokens a norm's bias kept .13 of its
gradient, a table's commonest words a third. Here both are added in float32 and rounded once. Compiled code and CUDA
kernels add in float32 by themselves.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

_ROWS = 512  # whose float32 copies are held at a time


def install(modules: Iterable[nn.Module]) -> None:
    """Have those of `modules` that are norms or tables add so; outputs and all other gradients stay as they are."""
    for each in modules:
        if type(each) is nn.LayerNorm and each.elementwise_affine and len(each.normalized_shape) == 1:
            each.forward = partial(_normalised, each)  # type: ignore[method-assign]
        elif type(each) is nn.Embedding and each.max_norm is None and not each.scale_grad_by_freq and not each.sparse:
            each.forward = partial(_looked_up, each)  # type: ignore[method-assign]
        elif hasattr(each, "look_up"):
            each.look_up = look_up  # type: ignore[assignment]


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`F.layer_norm` over the last dimension of `hidden` (..., H)."""
    normalised: Tensor = _LayerNorm.apply(hidden, weight, bias, eps)  # type: ignore[no-untyped-call]
    return normalised


def look_up(ids: Tensor, table: Tensor, padding_id: int | None = None) -> Tensor:
    """`F.embedding`: rows (..., H) of `table` (V, H) for `ids` (...); none of `padding_id`'s gradients counts."""
    rows: Tensor = _LookUp.apply(ids, table, padding_id)  # type: ignore[no-untyped-call]
    return rows


def _normalised(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    return layer_norm(hidden, norm.weight, norm.bias, norm.eps)


def _looked_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return look_up(ids, table.weight, table.padding_idx)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        normalised, mean, scale = torch.native_layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(hidden, weight, bias, mean, scale)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden, weight, bias, mean, scale = ctx.saved_tensors
        of_hidden, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, hidden, hidden.shape[-1:], mean, scale, weight, bias, [True, False, False]
        )
        sums = torch.zeros(2, hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        flat = (
            gradient.flatten(0, -2),
            hidden.flatten(0, -2),
            mean.flatten().unsqueeze(1),
            scale.flatten().unsqueeze(1),
        )
        for parts in zip(*(each.split(_ROWS) for each in flat), strict=True):
            given, into, centre, by = (part.float() for part in parts)
            sums[0] += (given * (into - centre) * by).sum(dim=0)
            sums[1] += given.sum(dim=0)
        of_bias = None if bias is None else sums[1].to(bias.dtype)
        return of_hidden, sums[0].to(weight.dtype), of_bias, None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding_id: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding_id = (table.shape, table.dtype), padding_id
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, Tensor, None]:
        (ids,), (shape, dtype) = ctx.saved_tensors, ctx.table  # type: ignore[attr-defined]
        there, places = ids.flatten().unique(return_inverse=True)
        sums = torch.zeros(len(there), shape[1], dtype=torch.float32, device=gradient.device)
        sums.index_add_(0, places, gradient.flatten(0, -2).float())
        if ctx.padding_id is not None:  # type: ignore[attr-defined]
            sums[there == ctx.padding_id] = 0  # type: ignore[attr-defined]
        return None, torch.zeros(shape, dtype=dtype, device=gradient.device).index_copy_(0, there, sums.to(dtype)), None
