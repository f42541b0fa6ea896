import time

import pytest
import torch

from fast_electra.kernels import precision


def test_a_named_dtype_is_taken_whatever_the_hardware():
    assert precision.dtype("bfloat16", on_cpu=True) == torch.bfloat16
    assert precision.dtype("float32", on_cpu=True) == torch.float32
    assert precision.name(torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize("units", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_auto_asks_the_cpu_for_units_that_multiply_bf16(monkeypatch, units):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert precision.dtype("auto", on_cpu=True) == torch.float32
    monkeypatch.setattr(torch.cpu, units, lambda: True)
    assert precision.dtype("auto", on_cpu=True) == torch.bfloat16


def test_auto_does_not_choose_the_numbers_this_machine_only_emulates():
    factors = {dtype: torch.randn(512, 512).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
    for _ in range(6):  # the first turn builds what torch keeps for a shape
        for dtype, factor in factors.items():
            start = time.perf_counter()
            factor @ factor
            seconds[dtype].append(time.perf_counter() - start)
    best = {dtype: min(taken) for dtype, taken in seconds.items()}
    # Units for bf16 win on large products and may not on small ones (one CI machine); emulation took 45 times as long.
    assert best[precision.dtype("auto", on_cpu=True)] < 3 * min(best.values())
