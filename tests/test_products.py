"""A step beside its own matrix products: what is noted is every FLOP of it, and what is timed is what was noted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from benchmarks import products, rows
from benchmarks.cases import Case
from benchmarks.contest import contestant
from benchmarks.contest.contestant import PARTS, Variant
from benchmarks.page.products_section import milliseconds, products_section
from fast_electra.engine import deepspeed_config, parallel

ROOT = Path(__file__).parent.parent
TINY = Case("demo", "frozen", 64, 512, "masked", 4)


@pytest.fixture
def settings() -> dict[str, object]:
    parallel.start()
    return deepspeed_config.read(str(ROOT / "ds_configs/zero1.json"))


def test_operations_alike_are_noted_once_and_composite_ones_taken_apart() -> None:
    one, other, weight = torch.randn(3, 4), torch.randn(3, 4), torch.randn(5, 4)
    recorder = products.Recorder()
    with recorder.part("forward"), torch.inference_mode():
        found = F.linear(one, weight), F.linear(other, weight), F.linear(one[:2], weight), one + other
    assert torch.equal(found[1], other @ weight.T)
    told = sorted((each.flops, each.times, each.shapes) for each in recorder.operations.values())
    assert told == [(2 * 2 * 4 * 5, 1, "(2, 4) x (4, 5)"), (2 * 3 * 4 * 5, 2, "(3, 4) x (4, 5)")]
    assert all(torch.equal(each.call(), one[: len(each.call())] @ weight.T) for each in recorder.operations.values())


def test_what_is_compiled_is_noted_as_it_is_and_compiles_afterwards() -> None:
    """A compiler passes over for good what it meets first under a dispatch mode."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda one: (one @ one).cos(), backend="eager")
    recorder = products.Recorder()
    with recorder.part("inputs"):
        compiled(torch.randn(3, 3))
    assert [each.times for each in recorder.operations.values()] == [1]
    assert counters["stats"]["unique_graphs"] == 0
    compiled(torch.randn(3, 3))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("objective", ["frozen", "replay", "joint_shallow", "joint_decoupled", "mlm"])
def test_no_flop_of_a_step_is_missed(objective: str, settings: dict[str, object], tmp_path: Path) -> None:
    case = replace(TINY, objective=objective)
    found = products.operations(case, settings, tmp_path)
    each = contestant.build(case, settings, tmp_path / "again")
    epsilons = [engine.optimizer.param_groups[0]["eps"] for engine in each.run.engines]
    each.close()
    # A fused backward pass makes the scores again, one of its five products.
    fused = [each for each in found if each.is_attention and ("gradient" in each.name or "backward" in each.name)]
    again = sum(operation.flops * operation.times // 5 for operation in fused)
    counted = sum(operation.flops * operation.times for operation in found) - again
    assert counted == pytest.approx(each.run.flops_per_token * each.tokens_per_step, rel=1e-12)
    lone = [2e-8] if objective in ("frozen", "replay", "joint_decoupled") else [1e-6]
    assert epsilons == pytest.approx([*lone, 1e-6] if objective == "joint_decoupled" else lone)
    auxiliary = {operation.part for operation in found} - {"forward", "backward"}
    assert auxiliary == ({"inputs"} if objective in ("frozen", "joint_decoupled") else set())


def test_a_step_is_told_beside_its_products(settings: dict[str, object], tmp_path: Path) -> None:
    row = products.measure(TINY, settings, turns=2, variant=Variant(micro_batches=2)) | rows.provenance("products")
    assert (row["micro_batches"], row["n"], row["compiled"]) == (2, 2, False)
    assert 0 < row["share_lowest"] <= row["share"] <= row["share_highest"]
    assert row["tflops_alone"] * row["seconds_alone"] == pytest.approx(row["tflops"] * row["seconds"])
    by_operation = sum(each["times"] * each["seconds"] for each in row["operations"])
    by_part = sum(row["by_part"][part][kind] for part in PARTS for kind in ("products", "attention"))
    assert by_operation == pytest.approx(row["seconds_alone"]) == pytest.approx(by_part)
    fused = {each["part"] for each in row["operations"] if "attention" in each["operation"]}
    assert {part for part in PARTS if row["by_part"][part]["attention"] > 0} == fused
    assert row["by_part"]["update"]["products"] == 0 < row["by_part"]["update"]["seconds"]
    assert sum(milliseconds(row, "forward").values()) == pytest.approx(1e3 * row["by_part"]["forward"]["seconds"])
    text = "\n".join(products_section([row], tmp_path))
    assert f"{100 * row['share']:.1f} %" in text
    assert f"| {row['tflops_alone']:.3g} |" in text
    on_gpu = row | {"vendor_peak_tflops": 989.0, "tflops": 494.5}
    assert "| 494 (50.0 %) |" in "\n".join(products_section([on_gpu], tmp_path))
    assert (tmp_path / "products.png").stat().st_size > 5000


def test_without_a_case_the_method_is_timed_as_this_device_can_bear(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(products, "measure", lambda case, *_: asked.append(case.name) or {})
    monkeypatch.setattr(products.rows, "keep", lambda *_: None)
    monkeypatch.setattr(products, "_table", lambda _: ())
    assert products.main(["--output", str(tmp_path), "--deepspeed", str(ROOT / "ds_configs/zero1.json")]) == 0
    small, base = "small/{}/128/16000/masked/16", "base/{}/512/32000/masked/2"
    assert asked == [name.format(method) for name in (small, base) for method in ("frozen", "replay")]


def test_rows_are_kept_for_the_page_and_a_bad_case_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    json = str(ROOT / "ds_configs/zero1.json")
    given = ["demo/replay/64/512/masked/2", "--turns", "1", "--output", str(tmp_path), "--deepspeed", json]
    assert products.main(given) == 0
    [row] = rows.read(tmp_path / "products.jsonl")
    assert row["code"] == rows.code_version("products")
    told = capsys.readouterr().out
    assert told.count("backward  mm") == sum(
        (each["part"], each["operation"]) == ("backward", "mm") for each in row["operations"]
    )
    assert row["zero_stage"] == 1
    plain = ["demo/joint_plain/64/512/all/2", "--turns", "1", "--output", str(tmp_path), "--deepspeed", json]
    assert products.main(plain) == 0
    assert [each["zero_stage"] for each in rows.read(tmp_path / "products.jsonl")] == [1, 0]
    assert products.main([*given[:1], "--turns", "0", "--deepspeed", json]) == 2
    assert "turns = 0" in capsys.readouterr().err
    assert products.main(["demo/replai"]) == 2
    assert "did you mean 'replay'" in capsys.readouterr().err
    assert "No step was timed" in "\n".join(products_section([], tmp_path))
