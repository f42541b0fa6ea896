"""Attention on a CPU in bf16: torch's fused forward pass, and a backward pass of our own (cpu_attention.cpp).

Torch's backward pass takes five to ten times the seconds of its forward pass there, by FLOPs 2.5 times, and was a
quarter of a compiled step of `base`. Ours keeps the scores of a block in the cache and has the CPU's matrix units do
the rest: a seventh to a ninth of the seconds at 128 tokens, a third at 512, .4 to .7 from 1,024 to 4,096, and no less
exact (LOG.md). It is built by the first start on a machine. Whatever it has no code for, stock attention computes.

Stock models know it by `NAME`, registered with transformers. Shapes: B rows, H heads, T tokens, D channels of a head.
"""

import hashlib
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

from fast_electra.kernels import operator_builds
from fast_electra.settings.config import EncoderConfig

NAME = "cpu_attention"
_TOKENS, _CHANNELS = 16, 32  # what it computes at once
_UNITS = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c"]
_AS_TORCH_IS_BUILT = ["-O3", "-fopenmp", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"]
_SOURCE = Path(__file__).with_suffix(".cpp")
_STOCK_ALONE = ("position_bias", "softcap", "cache")  # what transformers may ask of attention besides
_without: list[str] = []  # why this process does without it, though it has it


def covers(encoder: EncoderConfig, sequence_length: int, dtype: torch.dtype) -> bool:
    """Whether it computes the attention of an encoder of this shape: one that leaves the choice to us, above all."""
    free = encoder.attention == "auto" and encoder.model_type != "deberta-v2"
    channels = encoder.hidden_size // encoder.num_heads
    whole = sequence_length % _TOKENS == 0 and channels % _CHANNELS == 0
    return free and whole and dtype == torch.bfloat16 and encoder.attention_dropout == 0


def missing() -> str:
    """What this machine lacks for it, or nothing; the first call builds it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.cpu._is_avx512_bf16_supported():
        return "AVX-512 units for bf16"
    if not torch.backends.mkldnn.is_available():
        return "oneDNN"
    return _without[0] if _without else _build_failure()


def do_without(reason: str) -> None:
    """Have this process train on stock attention from now on."""
    _without.append(reason)


def operator_name() -> str:
    """What it is called where built operators lie: another source, torch or choice of units is another operator."""
    of = (_SOURCE.read_text(), torch.__version__, *_AS_TORCH_IS_BUILT, *_UNITS)
    return f"fast_electra_{NAME}_{hashlib.sha256(repr(of).encode()).hexdigest()[:8]}"


@cache
def _build_failure() -> str:
    """Builds the operator, or loads what was built, and registers it. What kept it from that, or nothing."""
    say = partial(print, flush=True) if os.environ.get("LOCAL_RANK", "0") == "0" else lambda _: None
    operator_builds.prefer_own_ninja()
    name, flags = operator_name(), [*_AS_TORCH_IS_BUILT, *_UNITS]
    operator_builds.announce(name, say)
    try:
        cpp_extension.load(name, [str(_SOURCE)], extra_cflags=flags, is_python_module=False)
        _try()
    except (RuntimeError, OSError) as failure:
        say(f"stock attention, which trains slower, for {name} could not be built or does not run here: {failure}")
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
    asked = causal or more.get("dropout") or any(more.get(name) is not None for name in _STOCK_ALONE)
    if asked or not _fits(query, key, value, attention_mask):
        stock: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return stock
    scale = query.shape[-1] ** -0.5 if more.get("scaling") is None else more["scaling"]
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the operator computes it."""
    alike = query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype == torch.bfloat16
    length, channels = query.shape[-2:]
    whole = length > 0 and length % _TOKENS == 0 and channels % _CHANNELS == 0
    dense = all(each.stride(-1) == 1 for each in (query, key, value))
    square = mask is None or (mask.dim() == 4 and mask.shape[-2:] == (length, length))
    constant = mask is None or (mask.dtype == torch.bfloat16 and not mask.requires_grad)
    return alike and whole and dense and square and constant


def _try() -> None:
    """Raise RuntimeError where the operator, loaded, does not run or gives something else than torch's."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, given = torch.randn(4, 1, 1, _TOKENS, _CHANNELS, generator=generator).bfloat16()
    aten, scale = torch.ops.aten, _CHANNELS**-0.5
    out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    wanted = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        given, query, key, value, out, log_sum, 0.0, False, scale=scale
    )
    found = torch.ops.fast_electra.attention_gradient(given, query, key, value, out, log_sum, None, scale)
    for ours, torchs in zip(found, wanted, strict=True):
        if not torch.allclose(ours.float(), torchs.float(), rtol=0.05, atol=0.05):
            raise RuntimeError(f"its gradients are {float((ours - torchs).abs().max()):.3g} off")


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
