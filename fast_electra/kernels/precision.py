"""In which numbers a run computes: bf16 where the hardware multiplies it, float32 where it only emulates it.

A CPU with AVX-512 BF16 or AMX units takes bf16 six times as fast as float32. One without them takes it up to a hundred
times slower (seen: 0.2 to 2 GFLOP/s a core against 20), so that the choice is not one to get wrong in silence.
Optimizer state and sums of gradients are float32 either way.
"""

import platform

import torch


def dtype(name: str, on_cpu: bool) -> torch.dtype:
    """The torch dtype of one of `run_config.DTYPES`, "auto" being what this machine computes fast."""
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(on_cpu) else torch.float32
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def name(chosen: torch.dtype) -> str:
    """`bfloat16` or `float32`."""
    return str(chosen).removeprefix("torch.")


def _fast_bfloat16(on_cpu: bool) -> bool:
    if not on_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
