"""What "auto" stands for: on GPUs compiled, on CPUs where the run is long enough, nowhere without a compiler."""

from dataclasses import replace

import pytest
import torch

from fast_electra.engine import parallel
from fast_electra.kernels import compilation, precision
from fast_electra.pretraining import choices
from fast_electra.settings import recipes

LONG = 10**6
GCC = "/usr/bin/gcc"  # and g++: any compiler is found or none
CASES = [
    (GCC, True, "cuda", "auto", 1, True, ""),
    (None, True, "cuda", "auto", 1, False, "a C compiler"),
    (GCC, False, "cuda", "auto", 1, False, "Python's headers"),
    (None, True, "cuda", True, 1, True, "a C compiler"),
    (GCC, True, "cuda", False, 1, False, ""),
    (GCC, True, "cpu", "auto", 1, False, ""),
    (GCC, True, "cpu", "auto", LONG, True, ""),
    (None, True, "cpu", "auto", LONG, False, "a C++ compiler"),
    (GCC, False, "cpu", "auto", LONG, False, "Python's headers"),
    (GCC, True, "cpu", True, 1, True, ""),
    (GCC, True, "cpu", False, LONG, False, ""),
]


@pytest.mark.parametrize(("compiler", "headers", "device", "asked", "steps", "compiled", "lacks"), CASES)
def test_auto_compiles_where_that_can_be_done_and_is_worth_its_time(
    compiler, headers, device, asked, steps, compiled, lacks, tmp_path, monkeypatch
):
    parallel.start()
    (tmp_path / "Python.h").touch() if headers else None
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilation, "has_triton", lambda: True)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(parallel, "device", lambda: torch.device(device))
    demo = recipes.get("demo")
    config = replace(demo, run=replace(demo.run, compile=asked, dtype="float32", steps=steps))
    found = choices.decided(config)
    assert found.run.compile is compiled
    assert compilation.missing(torch.device(device)).startswith(lacks)
    assert bool(compilation.missing(torch.device(device))) == bool(lacks)
    note = choices.note_of_compiling(config, found)
    assert ("minute longer" in note) == compiled
    assert (lacks in note and "for want of" in note) == bool(lacks and not compiled)
    assert bool(note) == bool(compiled or lacks)


def test_it_is_worth_its_time_from_some_flops_a_process_on(monkeypatch):
    parallel.start()
    demo = recipes.get("demo")
    tokens = demo.run.batch_rows * demo.data.sequence_length
    weights = 4 * 4 * 128**2 + 4 * 3 * 128 * demo.encoder.intermediate_size
    assert (demo.encoder.num_layers, demo.encoder.hidden_size) == (4, 128)
    enough = choices.WORTH_COMPILING / (6 * weights * tokens)
    for processes in (1, 3):
        monkeypatch.setattr(parallel, "world_size", lambda processes=processes: processes)
        for share, worth in ((0.999, False), (1.001, True)):
            config = replace(demo, run=replace(demo.run, steps=int(processes * enough * share)))
            assert choices.is_worth_compiling(config) == worth


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_the_dtype_is_the_machines_where_it_is_left_to_it(fast, monkeypatch):
    parallel.start()
    monkeypatch.setattr(precision, "_fast_bfloat16", lambda _: fast == torch.bfloat16)
    config = choices.decided(recipes.get("demo"))
    assert config.run.dtype == str(fast).removeprefix("torch.")
    assert choices.dtype_of(config) == fast
