"""Gradients of norms and of tables summed over a micro-batch's tokens in float32 and in one order, on a CPU.

torch's CPU kernels add a norm's weight gradients, and the rows of an embedding's, in the dtype of the weight. In bf16 a
sum of terms of like sign stands still after a few hundred of them: at 32,768 tokens a norm's bias kept .13 of its
gradient, a table's commonest words a third. Here both are added in float32 and rounded once. CUDA kernels add in
float32 by themselves, and so does compiled code; but a table's rows it adds by atomic operations, in the order in which
threads happen to come, a sixth as fast as they are added here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_ROWS = 512  # whose float32 copies are held at a time


def install(module: nn.Module, compiled: Sequence[nn.Module], in_bf16: bool) -> None:
    """Have a model that trains on a CPU add so: in bf16 all of it, otherwise the tables in its parts to be compiled.

    Outputs and all other gradients stay as they are. Norms in compiled parts are the compiler's to add.
    """
    within = {id(each): each for part in compiled for each in part.modules()}
    in_tables(module.modules() if in_bf16 else within.values())
    if in_bf16:
        in_norms(each for each in module.modules() if id(each) not in within)


def in_norms(modules: Iterable[nn.Module]) -> None:
    """Have those of `modules` that are norms add so."""
    for each in modules:
        if type(each) is nn.LayerNorm and each.elementwise_affine and len(each.normalized_shape) == 1:
            each.__class__ = _Norm


def in_tables(modules: Iterable[nn.Module]) -> None:
    """The same for those that are tables; in compiled code they stay part of the graph around them."""
    for each in modules:
        if type(each) is nn.Embedding and each.max_norm is None and not each.scale_grad_by_freq and not each.sparse:
            each.__class__ = _Table
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


class _Norm(nn.LayerNorm):
    """A class rather than a method put into each, so that modules alike share a compiled graph."""

    def forward(self, hidden: Tensor) -> Tensor:
        return layer_norm(hidden, self.weight, self.bias, self.eps)


class _Table(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return look_up(ids, self.weight, self.padding_idx)


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
        ctx.num_words, ctx.padding_id = table.shape[0], padding_id
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        return None, table_gradient(given, ids, ctx.num_words, ctx.padding_id), None


@torch.library.custom_op("fast_electra::table_gradient", mutates_args=())
def table_gradient(given: Tensor, ids: Tensor, num_words: int, padding_id: int | None) -> Tensor:
    """The gradient (V, H) of a table from that of the rows looked up, `given` (..., H), for `ids` (...).

    One operator to the compiler, which would break a graph where sizes hang on the words that occur.
    """
    there, places = ids.flatten().unique(return_inverse=True)
    sums = torch.zeros(len(there), given.shape[-1], dtype=torch.float32, device=given.device)
    sums.index_add_(0, places, given.flatten(0, -2).float())
    if padding_id is not None:
        sums[there == padding_id] = 0
    return given.new_zeros(num_words, given.shape[-1]).index_copy_(0, there, sums.to(given.dtype))


@table_gradient.register_fake
def _like_the_table(given: Tensor, _ids: Tensor, num_words: int, _padding_id: int | None) -> Tensor:
    return given.new_empty(num_words, given.shape[-1])
