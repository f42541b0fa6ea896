import time
from statistics import median

import pytest
import torch

from fast_electra import precision


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


def test_what_auto_chooses_on_this_machine_is_the_faster_one():
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.randn(256, 256).to(dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            factor @ factor
            times.append(time.perf_counter() - start)
        seconds[dtype] = median(times)
    assert min(seconds, key=seconds.__getitem__) == precision.dtype("auto", on_cpu=True)
