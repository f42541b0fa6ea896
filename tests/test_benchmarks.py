"""The cost suite: cases, counted bytes, simulated and measured peaks, savings, totals, rows and the page."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import clean_environment
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import cases, costs, engines, measure, overhead, replay, rows
from benchmarks import report as reports
from benchmarks.cases import Case
from benchmarks.contest import material
from benchmarks.contest.contestant import Variant
from benchmarks.memory import step
from benchmarks.memory.live_memory import LiveMemory, allocator_change, allocator_peak
from benchmarks.memory.per_gpu import per_gpu
from benchmarks.page import comparisons
from benchmarks.page.engine_section import engine_section
from benchmarks.page.replay_section import replay_section
from benchmarks.simulate import main as simulate_main
from benchmarks.simulate import simulate, simulate_all
from fast_electra.engine import auxiliary_engine

ROOT = Path(__file__).parent.parent

CPU = torch.device("cpu")
TINY = Case("demo", "frozen", 64, 512, "masked", 16)
ORIGIN: dict[str, Any] = {
    "code": "a1",
    "commit": "c1",
    "hardware": {"gpu": None, "cpu": "some", "cores": 2},
    "libraries": {"torch": "2", "deepspeed": "0", "transformers": "5"},
}


# Cases.


def test_a_case_is_found_by_its_name() -> None:
    assert cases.parse("base/frozen") == Case("base", "frozen")
    assert cases.parse("base/frozen+checkpointing") == Case("base", "frozen", activation_checkpointing=True)
    for case in (*cases.COUNTED, *cases.SIMULATED, TINY, replace(TINY, activation_checkpointing=True)):
        assert cases.parse(case.name) == case


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base/frozn", r"objective 'frozn' is no part .*did you mean 'frozen'"),
        ("bass/frozen", r"recipe 'bass' is no part .*did you mean 'base'"),
        ("base/frozen/512/32000/some", r"head 'some' is no part .*choose one of masked, all"),
        ("base", r"case 'base': write recipe/objective"),
        ("base/frozen/long", r"case 'base/frozen/long': .* whole numbers"),
        ("base/frozen/512/5", r"vocab_size = 5: give more than the 5 special tokens"),
    ],
)
def test_an_unknown_case_names_the_nearest_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases.parse(name)


def test_method_and_rivals_share_the_discriminator() -> None:
    for recipe in cases.RECIPES:
        for objective in (*cases.METHODS, *cases.rivals(recipe)):
            ours, theirs = (cases.shapes(Case(recipe, name))[0] for name in ("frozen", objective))
            assert ours.to_dict() == theirs.to_dict()


def test_generators_have_the_shapes_of_their_papers() -> None:
    def shape(recipe: str, objective: str) -> tuple[int, int]:
        generator = cases.shapes(Case(recipe, objective))[1]
        assert generator is not None
        return generator.num_hidden_layers, generator.hidden_size

    assert shape("electra_base", "joint") == (12, 256)
    assert shape("electra_large", "joint") == (24, 256)
    assert shape("base", "joint_gdes") == (6, 768)
    for recipe in cases.RECIPES:
        assert shape(recipe, "frozen") == shape(recipe, "joint_shallow")
        assert cases.shapes(Case(recipe, "replay"))[1] is None


def test_a_rival_that_the_encoder_cannot_have_is_refused() -> None:
    assert "joint" not in cases.rivals("base")
    with pytest.raises(ValueError, match="narrow generator cannot share"):
        cases.config(Case("base", "joint"))


# Bytes.


def test_live_memory_counts_each_storage_once_until_it_is_gone() -> None:
    memory = LiveMemory()
    with memory, memory.phase("all", "activations"):
        kept = torch.zeros(1000)
        view = kept.view(10, 100)
        assert memory.live["activations"] == 4000
        passing = kept + 1
        assert memory.live["activations"] == 8000
        del passing, view
        assert memory.live["activations"] == 4000
        memory.hold([kept], "parameters")
    assert memory.live["activations"] == 0
    assert memory.live["parameters"] == 4000
    assert sum(memory.peaks["all"].values()) == 8000


@pytest.mark.parametrize("recompute", [False, True])
def test_fake_and_real_steps_hold_the_same_bytes(recompute: bool) -> None:
    peaks, case = [], replace(TINY, activation_checkpointing=recompute)
    for fake in (True, False):
        memory = LiveMemory()
        if fake:
            with FakeTensorMode():
                step.run(case, CPU, memory)
        else:
            step.run(case, CPU, memory)
        peaks.append(memory.peaks)
    for phase, expected in peaks[1].items():
        assert peaks[0][phase] == pytest.approx(expected, rel=0.01, abs=1000)


def test_the_allocators_own_count_is_that_of_the_live_tensors() -> None:
    module, rows_in = nn.Sequential(nn.Linear(256, 1024), nn.Tanh(), nn.Linear(1024, 8)), torch.randn(512, 256)
    memory = LiveMemory()
    memory.hold(module.parameters(), "parameters")
    memory.hold([rows_in], "activations")
    before = sum(memory.live.values())
    with memory, memory.phase("step", "activations"):
        module(rows_in).square().mean().backward()
    module.zero_grad()
    allocated = allocator_peak(lambda: module(rows_in).square().mean().backward(), CPU)
    assert sum(memory.peak().values()) - before == pytest.approx(allocated, rel=0.02)


def test_the_allocators_change_is_what_stays() -> None:
    kept: list[torch.Tensor] = []
    assert allocator_change(lambda: kept.append(torch.ones(100_000).exp()), CPU) == 400_000
    assert allocator_peak(lambda: kept.append(torch.ones(100_000).exp()), CPU) == 800_000
    assert allocator_change(kept.clear, CPU) == 0, "what others release does not count"


def test_the_peak_holds_every_weight_its_gradients_and_its_optimizer_state() -> None:
    row = simulate(TINY)
    assert row["peak_bytes"]["parameters"] == 2 * row["trained_weights"]
    assert row["peak_bytes"]["gradients"] >= 4 * row["trained_weights"]
    assert row["update_bytes"]["gradients"] == pytest.approx(6 * row["trained_weights"], rel=0.01)
    assert row["peak_bytes"]["optimizer"] == pytest.approx(12 * row["trained_weights"], rel=1e-4)
    assert row["peak_bytes"]["auxiliary"] > 0


def test_a_joint_generator_costs_memory_that_a_frozen_one_does_not() -> None:
    peaks = {name: simulate(replace(TINY, objective=name)) for name in ("replay", "frozen", "joint_shallow")}
    assert peaks["joint_shallow"]["peak_bytes"]["optimizer"] > peaks["frozen"]["peak_bytes"]["optimizer"]
    assert peaks["joint_shallow"]["peak_bytes"]["activations"] > peaks["frozen"]["peak_bytes"]["activations"]
    extra = peaks["frozen"]["peak_memory_gib"] - peaks["replay"]["peak_memory_gib"]
    assert extra * 2**30 == pytest.approx(peaks["frozen"]["peak_bytes"]["auxiliary"], rel=0.05)


@pytest.mark.parametrize("objective", ["frozen", "joint_shallow", "joint_decoupled"])
def test_layers_computed_again_save_activations_and_nothing_else(objective: str) -> None:
    case = replace(TINY, objective=objective)
    kept, again = (simulate(replace(case, activation_checkpointing=each)) for each in (False, True))
    names = ("parameters", "optimizer", "auxiliary")
    assert [again["peak_bytes"][name] for name in names] == [kept["peak_bytes"][name] for name in names]
    assert again["backward_bytes"]["activations"] < 0.3 * kept["backward_bytes"]["activations"]
    assert again["peak_memory_gib"] < kept["peak_memory_gib"]
    assert costs.count(case)["parts"] == costs.count(replace(case, activation_checkpointing=True))["parts"]


def test_two_optimizers_hold_what_one_holds_but_the_shared_embeddings() -> None:
    one, two = (simulate(replace(TINY, objective=name)) for name in ("joint_shallow", "joint_decoupled"))
    embeddings = two["trained_weights"] - one["trained_weights"]
    settings = cases.config(TINY)
    assert embeddings == TINY.vocab_size * settings.encoder.hidden_size
    for kind in ("parameters", "optimizer"):
        assert two["peak_bytes"][kind] > one["peak_bytes"][kind]
    assert two["peak_bytes"]["optimizer"] == pytest.approx(12 * two["trained_weights"], rel=1e-4)


def test_help_says_what_is_left_out_of_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate_main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Left out are 512 tokens a row, 32000 of vocabulary and the recipe's micro-batch" in text
    assert "[+checkpointing]; none: the report's" in text
    assert "+checkpointing computes the layers again" in text
    assert "(default: runs/bench)" in text


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="LM head on masked positions only"):
        simulate(replace(TINY, head="all"))


def test_simulated_rows_are_kept_until_case_or_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "rows.jsonl", replace(TINY, objective="replay")
    first = simulate_all([TINY], path)
    assert simulate_all([TINY], path) == first
    made = simulate_all([TINY, other], path)
    assert made[0] == first[0]
    monkeypatch.setitem(rows.SOURCES, "memory", ("benchmarks/memory/step.py",))
    again = simulate_all([TINY], path)
    assert again[0]["key"] != first[0]["key"]
    assert rows.read(path) == again


def test_zero_splits_what_belongs_to_weights_and_nothing_else() -> None:
    row = simulate(TINY)
    one, many = per_gpu(row, 3, 1), per_gpu(row, 3, 64)
    gathered = row["backward_bytes"]["parameters"]
    assert many["bytes"]["optimizer"] == one["bytes"]["optimizer"] / 64
    sums = 4 * row["trained_weights"]
    assert one["bytes"]["gradients"] - many["bytes"]["gradients"] == pytest.approx(sums * 63 / 64)
    assert many["bytes"]["parameters"] == one["bytes"]["parameters"] / 64 + gathered
    assert many["bytes"]["activations"] == one["bytes"]["activations"]
    assert many["bytes"]["auxiliary"] == one["bytes"]["auxiliary"]
    assert per_gpu(row, 1, 64)["bytes"]["gradients"] == row["backward_bytes"]["gradients"]
    assert per_gpu(row, 1, 1)["bytes"] == row["backward_bytes"] | {"buffers": 0.0}
    late = row | {"update_bytes": row["backward_bytes"]}
    assert [per_gpu(late, 1, n)["bytes"]["buffers"] for n in (1, 8)] == [0.0, 4.0 * row["trained_weights"]]
    assert per_gpu(row, 2, 1, bucket=7)["bytes"] == row["backward_bytes"] | {"buffers": 14.0}
    offloaded = per_gpu(row, 3, 8, "optimizer and weights")
    assert offloaded["bytes"]["optimizer"] == 0
    assert offloaded["host_gib"] * 2**30 == pytest.approx(18 * row["trained_weights"] / 8)
    with pytest.raises(ValueError, match="weights are offloaded at stage 3 only"):
        per_gpu(row, 2, 8, "optimizer and weights")


# FLOPs.


@pytest.fixture(scope="module")
def counted() -> list[rows.Row]:
    wanted = [case for case in cases.COUNTED if case.recipe in ("electra_base", "base") and case.sequence_length == 512]
    return costs.count_all(wanted)


def test_objectives_that_are_not_listed_cost_what_the_page_says() -> None:
    same = {"two_stage": "frozen", "unigram": "replay", "random": "replay", "joint_decoupled": "joint_shallow"}
    for objective, listed in same.items():
        ours, theirs = (costs.count(Case("base", name)) for name in (objective, listed))
        assert ours["parts"] == theirs["parts"]


def test_parts_of_a_counted_row_sum_to_its_total(counted: list[rows.Row]) -> None:
    for row in counted:
        assert sum(part["flops_per_token"] for part in row["parts"]) == pytest.approx(row["flops_per_token"])


def test_savings_of_the_rival_with_the_methods_own_generator_follow_from_r(counted: list[rows.Row]) -> None:
    for row in rows.select(costs.savings(counted), "saving", rival="joint_shallow"):
        assert row["saving"] == pytest.approx(row["saving_with_rivals_generator"])


def test_the_needed_ratio_gives_the_claimed_saving() -> None:
    for (what, method), claim in costs.CLAIMS.items():
        if what == "flops":
            for share in claim:
                assert costs._saving(method, costs._needed_ratio(method, share)) == pytest.approx(share)


def test_total_costs_meet_at_the_break_even(counted: list[rows.Row]) -> None:
    for row in costs.total_costs(counted):
        setting = {name: row[name] for name in ("recipe", "sequence_length", "vocab_size", "head")}
        joint, frozen = (
            rows.the(counted, "flops", objective=name, **setting)["flops_per_token"]
            for name in (row["rival"], "frozen")
        )
        k = row["runs"][0]["break_even_k_frozen"]
        assert frozen + k * row["auxiliary_training_flops_per_token"] == pytest.approx(joint)
        if row["rival"] == "joint_shallow":
            assert k == pytest.approx(2 / 3)
        shares = [each["replay_to_rival"] for each in row["runs"]]
        assert shares == sorted(shares, reverse=True)


# Rows.


def measured(objective: str, speed: float, flops: float, **changes: Any) -> rows.Row:
    case = replace(TINY, recipe="base", sequence_length=512, vocab_size=32_000, micro_batch_rows=2)
    return {
        "kind": "throughput",
        **case.fields,
        "objective": objective,
        "device": "cpu",
        "threads": 2,
        "num_processes": 1,
        "zero_stage": 1,
        "compiled": False,
        "dtype": "bfloat16",
        "tokens_per_second": speed,
        "tokens_per_second_low": 0.9 * speed,
        "tokens_per_second_high": 1.1 * speed,
        "seconds_by_part": {"inputs": 0.1, "forward": 0.3, "backward": 0.5, "update": 0.1},
        "flops_per_token": flops,
        "measured_peak_tflops": 0.5,
        "vendor_peak_tflops": None,
        "mfu_vendor": None,
        "mfu_measured": 0.3,
        "peak_memory_gib": 2.0,
        "simulated_memory_gib": 2.1,
        "n": 5,
        "formula": "a formula",
        **ORIGIN,
    } | changes


def test_a_lead_is_compared_with_the_ratio_of_flops() -> None:
    found = [measured("frozen", 130.0, 1e9), measured("joint_shallow", 100.0, 1.25e9)]
    (row,) = comparisons.speeds(found)
    assert row["ratio"] == pytest.approx(1.3)
    assert row["difference"] == pytest.approx(1.3 / 1.25 - 1)
    assert row["agrees"]
    (slow,) = comparisons.speeds([measured("frozen", 100.0, 1e9), found[1]])
    assert not slow["agrees"]


def test_updates_of_several_micro_batches_are_rated_by_all_their_tokens_and_are_measurements_of_their_own(
    tmp_path: Path,
) -> None:
    one = [measured("frozen", 130.0, 1e9), measured("joint_shallow", 100.0, 1.25e9)]
    four = [row | {"micro_batches": 4} for row in one]
    assert comparisons.speeds([one[0], four[1]]) == []
    (rate,), (rate_of_four,) = ([row["rate_tflops"] for row in comparisons.speeds(each)] for each in (one, four))
    assert rate_of_four == pytest.approx([4 * each for each in rate])
    path = tmp_path / "measured.jsonl"
    for made in (one, four, [one[0] | {"micro_batches": 1}]):  # the last a measurement made again
        rows.keep(path, made)
    assert [row.get("micro_batches") for row in rows.read(path)] == [None, 4, 4, 1]


def test_rows_of_other_machines_are_not_compared() -> None:
    found = [measured("frozen", 130.0, 1e9), measured("joint_shallow", 100.0, 1.25e9, device="NVIDIA H200")]
    assert comparisons.speeds(found) == []


def test_mixed_code_versions_are_named() -> None:
    with pytest.raises(ValueError, match=r"(?s)different versions.*code a1 \(commit c1\).*code b2 \(commit c2\)"):
        rows.one_version([measured("frozen", 1, 1), measured("replay", 1, 1, code="b2", commit="c2")])


def test_a_missing_row_and_a_double_one_are_named() -> None:
    found = [measured("frozen", 1, 1)]
    with pytest.raises(ValueError, match=r"no throughput row with objective=replay: run `make bench`"):
        rows.the(found, "throughput", objective="replay")
    with pytest.raises(ValueError, match=r"2 throughput rows with objective=frozen"):
        rows.the(found * 2, "throughput", objective="frozen")
    with pytest.raises(ValueError, match=r"two throughput rows of base/frozen"):
        rows.distinct(found * 2)


def test_a_measurement_made_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"
    rows.keep(path, [measured("frozen", 1.0, 1), measured("replay", 2.0, 1)])
    rows.keep(path, [measured("frozen", 3.0, 1)])
    assert sorted(row["tokens_per_second"] for row in rows.read(path)) == [2.0, 3.0]


def test_a_damaged_file_of_rows_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(FileNotFoundError, match="is no file of result rows"):
        rows.read(path)
    path.write_text('{"kind": "flops"}\n{"kind": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2 is no JSON"):
        rows.read(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"rows.jsonl:1 is no result row"):
        rows.read(path)


# The page.


def test_a_page_without_a_measured_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reports.main(["--output", str(tmp_path)]) == 2
    assert "no measured row" in capsys.readouterr().err
    assert reports.main(["--output", str(tmp_path), "--rows", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl is no file of result rows" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


def test_a_page_of_mixed_code_versions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write(tmp_path / "measured.jsonl", [measured("frozen", 1, 1), measured("replay", 1, 1, code="b2")])
    assert reports.main(["--output", str(tmp_path)]) == 2
    assert "different versions of the code" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        fewer = [case for case in cases.COUNTED if case.recipe in ("electra_base", "base")]
        patch.setattr(cases, "COUNTED", fewer)
        patch.setattr(
            cases, "SIMULATED", [replace(TINY, objective=name) for name in ("frozen", "replay", "joint_shallow")]
        )
        rows.write(
            folder / "measured.jsonl", [measured("frozen", 130.0, 1e9), measured("joint_shallow", 100.0, 1.25e9)]
        )
        reports.write(reports.gather(folder, []), folder)
    return folder


def test_every_saving_on_the_page_is_in_the_rows(page: Path) -> None:
    found, text = rows.read(page / "rows.jsonl"), (page / "report.md").read_text()
    for kind in ("saving", "memory_saving"):
        for row in rows.select(found, kind, rival="joint_shallow"):
            assert f"{100 * row['saving']:.1f} %" in text
    assert "1.300 (" in text
    assert "Each method was faster than every joint rival measured beside it." in text
    assert "not this checkout's" in text, "rows made with other code must be marked"


def test_every_row_names_its_formula_and_n(page: Path) -> None:
    for row in rows.read(page / "rows.jsonl"):
        assert row["formula"]
        assert row["n"] >= 1
        assert row["code"]


def test_every_picture_on_the_page_is_there(page: Path) -> None:
    text = (page / "report.md").read_text()
    pictures = [name.partition(")")[0] for name in text.split("](")[1:]]
    assert len(pictures) == 4
    assert all((page / name).stat().st_size > 5000 for name in pictures)


def test_savings_outside_the_papers_range_are_explained(page: Path) -> None:
    text = (page / "report.md").read_text()
    assert "electra_base, frozen against joint: 4.3 %, below 20 to 30 %" in text
    assert "with the rival's own, frozen, the saving would be" in text
    assert "base, frozen against joint_gdes: 26.9 %, below" not in text


def test_what_was_not_measured_is_said(page: Path) -> None:
    assert "Not measured here: replay, joint_gdes." in (page / "report.md").read_text()


# Replacement paths.


@pytest.fixture(scope="module")
def replayed(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> rows.Row:
    """Two turns on real text with an auxiliary model of random weights, in this process."""
    case = replace(TINY, objective="frozen", micro_batch_rows=4)
    folder = tmp_path_factory.mktemp("auxiliary") / "model"
    batches = material.few_rows(case, replace(cases.config(case).data, held_out_rows=4), 8, str(tiny_corpus))
    material.write_auxiliary(case, batches, folder)
    settings = json.loads((ROOT / "ds_configs/zero1.json").read_text())
    row = replay.measure(case, settings, turns=2, corpus=str(tiny_corpus), auxiliary=str(folder))
    return row | rows.provenance("replay")


def test_a_replayed_step_is_timed_beside_the_others_and_its_paths_are_counted(replayed: rows.Row) -> None:
    assert {name: len(seconds) for name, seconds in replayed["step_seconds"].items()} == {
        "ready": 2,
        "replay": 2,
        "frozen": 2,
    }
    assert 0 < replayed["bytes_per_token"] < replayed["bytes_per_masked_position"]
    means = [each["mean"] for each in replayed["entries"]]
    assert means == sorted(means), "a wider range of temperatures can only add entries"
    masked = cases.config(replace(TINY, micro_batch_rows=4)).data.num_masked
    for each in replayed["entries"]:
        assert sum(each["positions_by_entries"]) % masked == 0
        assert each["positions_by_entries"][0] == 0
        assert each["mean"] >= 1


def test_the_page_shows_every_figure_of_replacement_paths(replayed: rows.Row, tmp_path: Path) -> None:
    speeds = {"joint_shallow": 100.0, "frozen": 130.0, "replay": 150.0}
    found = [measured(name, speed, 1e9) for name, speed in speeds.items()]
    text = "\n".join(replay_section([*found, replayed], tmp_path))
    for figure in ("1.300", "1.500", f"{replayed['replay_to_ready']:.3f}", f"{replayed['bytes_per_token']:.3f}"):
        assert figure in text
    assert (tmp_path / "entries.png").stat().st_size > 5000
    assert "No paths were timed here" in "\n".join(replay_section(found, tmp_path))


# The auxiliary model's engines.


def test_each_engine_has_its_row_and_one_that_cannot_run_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders = auxiliary_engine._builders
    monkeypatch.setattr(  # compiling takes a CPU a minute
        auxiliary_engine, "_builders", lambda *args: {"injected": builders(*args)["injected"]}
    )
    made = [row | rows.provenance("engine") for row in engines.measure(replace(TINY, micro_batch_rows=4))]
    plain, injected = made
    assert (plain["engine"], plain["agreement"], plain["micro_batch_rows"]) == ("plain", 1.0, 4)
    assert plain["seconds"] > 0
    assert (injected["seconds"], injected["refused"]) == (0.0, "they know bert, roberta, electra, not modernbert")
    text = "\n".join(engine_section(made, tmp_path))
    for figure in (
        f"{1e3 * plain['seconds']:.2f}",
        "100.0 %",
        injected["refused"],
        "No row here was measured on a GPU",
    ):
        assert figure in text
    on_gpu = [row | {"device": "some GPU"} for row in made]
    assert "No row here" not in "\n".join(engine_section(on_gpu, tmp_path))
    assert "No engine was timed here" in "\n".join(engine_section([measured("frozen", 1.0, 1.0)], tmp_path))


# The clock, on the real path.


def test_a_runs_own_step_is_timed_beside_a_bare_loops() -> None:
    case = replace(TINY, vocab_size=128, micro_batch_rows=2)
    found = overhead.compare(case, str(ROOT / "ds_configs/zero3.json"), 2, Variant(micro_batches=2))
    assert (found["tokens_per_update"], found["compiled"], found["turns"]) == (2 * 2 * 64, False, 2)
    low, high = found["run_over_bare_range"]
    assert 0 < low <= found["run_over_bare"] <= high


def test_a_turn_counts_for_mfu_where_the_products_around_it_say_the_same() -> None:
    products = [(2e12, 2e12), (2e12, 0.8e12), (0.8e12, 0.8e12), (2e12, 1.8e12)]
    speeds = [100.0, 90.0, 50.0, 95.0]
    found = measure.measured_mfu(1e10, speeds, products)
    assert found == (pytest.approx(0.5), 1.9e12, 3)  # of .5, .625 and .5; the second turn's pace is unknown
    assert measure.measured_mfu(1e10, [90.0], [(2e12, 0.8e12)]) == (pytest.approx(0.9 / 1.4), 1.4e12, 1)


def test_real_steps_under_deepspeed_hold_what_the_simulation_says(tmp_path: Path) -> None:
    """Three cases through DeepSpeed's engine: rows complete, measured and simulated peaks within 10 %.

    On one core: threads that wait for each other on a busy machine take minutes for what takes seconds.
    """
    settings = json.loads((ROOT / "ds_configs/zero1.json").read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 100_000  # the default 1 GB would hide all the rest
    (tmp_path / "zero1.json").write_text(json.dumps(settings))
    names = [replace(TINY, objective=name).name for name in ("frozen", "joint_shallow")]
    names.append(replace(TINY, vocab_size=16_000, micro_batch_rows=1).name)  # its peak is in the update
    command = [sys.executable, "-m", "benchmarks.measure", *names, "--turns=2", f"--output={tmp_path}"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, f"--deepspeed={tmp_path / 'zero1.json'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = rows.read(tmp_path / "measured.jsonl")
    assert [row["objective"] for row in found] == ["frozen", "joint_shallow", "frozen"]
    for row in found:
        if row["dtype"] == "bfloat16":
            assert row["simulated_memory_gib"] == pytest.approx(row["peak_memory_gib"], rel=0.10)
        else:
            assert row["simulated_memory_gib"] is None, "bf16 is what is simulated"
        assert row["peak_memory_gib"] < 0.5
        assert row["n"] == 2
        of_turns = [
            row["flops_per_token"] * speed / (sum(pair) / 2 * 1e12)
            for speed, pair in zip(row["tokens_per_second_all"], row["products_tflops_all"], strict=True)
        ]
        rounding = 1 + 1e-12  # of FLOP/s that the row gives in units of 1e12
        assert min(of_turns) / rounding <= row["mfu_measured"] <= max(of_turns) * rounding
        assert row["mfu_vendor"] is None
        assert row["zero_stage"] == 1
    assert len(comparisons.speeds(found)) == 1


def test_separated_documents_are_timed_beside_rows_left_whole(tiny_corpus: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.separation", "demo/random/64/512/masked/4", "--turns=2"]
    done = subprocess.run(
        [*command, f"--corpus={tiny_corpus}"],
        cwd=ROOT,
        env=clean_environment(DS_ACCELERATOR="cpu"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    for ratio in (found["apart_over_together"], found["apart_over_together_by_cpu_time"]):
        assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    assert 0 < found["attention_share"] < found["flops_share"] < 1
