"""Attention on a CPU in bf16: torch's fused forward pass, and a backward pass of our own (cpu_attention.cpp).

Torch's backward pass takes five to seven times the seconds of its forward pass there, by FLOPs 2.5 times, and was a
quarter of a compiled step of `base`. Ours keeps the scores of a block in the cache and has the CPU's matrix units do
the rest: a third of the seconds at 512 tokens, a tenth at 128, and no less exact (LOG.md). It is built by the first
start on a machine. Whatever it has no code for, stock attention computes.

Stock models know it by `NAME`, registered with transformers. Shapes: B rows, H heads, T tokens, D channels of a head.
"""

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import cpp_extension
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fast_electra import operator_builds
from fast_electra.config import EncoderConfig

NAME = "cpu_attention"
OPERATOR = f"fast_electra_{NAME}"  # what it is called where built operators lie
_TOKENS, _CHANNELS = 16, 32  # what it computes at once
_UNITS = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c"]
_AS_TORCH_IS_BUILT = ("-O3", "-fopenmp", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512")


def covers(encoder: EncoderConfig, sequence_length: int, dtype: torch.dtype) -> bool:
    """Whether it computes the attention of an encoder of this shape, rather than leave it to stock attention."""
    channels = encoder.hidden_size // encoder.num_heads
    whole = sequence_length % _TOKENS == 0 and channels % _CHANNELS == 0
    return whole and dtype == torch.bfloat16 and encoder.attention_dropout == 0


def missing() -> str:
    """What this machine lacks for it, or nothing; the first call builds it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.cpu._is_avx512_bf16_supported():
        return "AVX-512 units for bf16"
    if not torch.backends.mkldnn.is_available():
        return "oneDNN"
    return _build_failure()


@cache
def _build_failure() -> str:
    """Builds the operator, or loads what was built, and registers it. What kept it from that, or nothing."""
    say = partial(print, flush=True) if os.environ.get("LOCAL_RANK", "0") == "0" else lambda _: None
    operator_builds.prefer_own_ninja()
    operator_builds.announce(OPERATOR, say)
    source = str(Path(__file__).with_suffix(".cpp"))
    try:
        cpp_extension.load(OPERATOR, [source], extra_cflags=[*_AS_TORCH_IS_BUILT, *_UNITS], is_python_module=False)
    except (RuntimeError, OSError) as failure:
        say(f"stock attention, which trains slower, for {OPERATOR} could not be built: {failure}")
        return str(failure)
    torch.library.register_fake("fast_electra::attention_gradient", _like_projections)
    register_flop_formula(torch.ops.fast_electra.attention_gradient)(_flops)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return ""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The output (B, T, H, D) of `query`, `key` and `value` (B, H, T, D), called as transformers calls attention."""
    causal = more.get("is_causal") if more.get("is_causal") is not None else getattr(module, "is_causal", True)
    biased = causal or more.get("dropout") or more.get("position_bias") is not None
    if biased or not _fits(query, key, value, attention_mask):
        stock: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return stock
    scale = query.shape[-1] ** -0.5 if more.get("scaling") is None else more["scaling"]
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the operator computes it."""
    alike = query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype == torch.bfloat16
    whole = query.shape[-2] % _TOKENS == 0 and query.shape[-1] % _CHANNELS == 0
    masked = mask is None or (mask.dtype == torch.bfloat16 and mask.dim() == 4 and not mask.requires_grad)
    return alike and whole and masked


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        out: Tensor
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, out, log_sum)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, log_sum = ctx.saved_tensors
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.fast_electra.attention_gradient(
            given, query, key, value, out, log_sum, mask, ctx.scale
        )
        return *gradients, None, None


def _flops(given: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the operator, as of any fused backward pass, from shapes."""
    return int(sdpa_backward_flop_count(given, query, key, value))


def _like_projections(given: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator returns, without numbers: (B, H, T, D) that lie in memory as (B, T, H, D)."""
    rows, heads, length, channels = given.shape
    query, key, value = (given.new_empty(rows, length, heads, channels).transpose(1, 2) for _ in range(3))
    return query, key, value
