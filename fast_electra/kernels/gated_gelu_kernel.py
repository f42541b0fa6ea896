"""The Triton kernel of gated_gelu: the gradients of up and gate in one pass, float32 inside. CUDA only.

Shapes: R rows (tokens), I the width between a feed-forward layer's matrices.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_BLOCK = 1024  # of a row, for one program


@triton.jit
def _gradient_kernel(given_at, hidden_at, out_at, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    up_at = row * (2 * width) + column
    given = tl.load(given_at + row * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden_at + up_at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(hidden_at + up_at + width, mask=inside, other=0.0).to(tl.float32)
    share = 0.5 * (1.0 + tl.erf(up * 0.7071067811865476))
    density = tl.exp(-0.5 * up * up) * 0.3989422804014327
    kind = out_at.dtype.element_ty
    tl.store(out_at + up_at, (given * gate * (share + up * density)).to(kind), mask=inside)
    tl.store(out_at + up_at + width, (given * up * share).to(kind), mask=inside)


@triton_op("fast_electra::gated_gelu_gradient", mutates_args={})
def gradient(given: Tensor, hidden: Tensor) -> Tensor:
    """The gradient (R, 2 I) of `hidden` (R, 2 I), from that of the output, `given` (R, I); any dimensions before."""
    given, hidden = given.contiguous(), hidden.contiguous()
    out, width = torch.empty_like(hidden), given.shape[-1]
    grid = (given.numel() // width, triton.cdiv(width, _BLOCK))
    wrap_triton(_gradient_kernel)[grid](given, hidden, out, width=width, block=_BLOCK)
    return out
