import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from benchmarks.memory import per_gpu
from fast_electra.engine import deepspeed_config
from fast_electra.engine.deepspeed_config import fill, micro_batch_rows, note_of_small_pieces, read, zero_stage
from fast_electra.runs import command_line
from fast_electra.settings import recipes
from fast_electra.settings.config import OBJECTIVES

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))
RECIPE = recipes.get("demo")
DEMO = replace(RECIPE, run=replace(RECIPE.run, dtype="bfloat16"))
ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_settings_leave_nothing_open(path):
    filled = fill(read(str(path)), DEMO, num_processes=2, on_cpu=True)
    assert "auto" not in json.dumps(filled)
    assert filled["train_batch_size"] == DEMO.run.batch_rows
    assert filled["train_micro_batch_size_per_gpu"] * 2 * filled["gradient_accumulation_steps"] == DEMO.run.batch_rows
    assert filled["optimizer"]["params"]["lr"] == DEMO.optimizer.peak_learning_rate
    assert filled["csv_monitor"]["output_path"] == "runs/demo/monitor"


def test_stages_are_what_their_names_say():
    assert {path.stem: zero_stage(read(str(path))) for path in SHIPPED} == {
        "zero1": 1,
        "zero2": 2,
        "zero3": 3,
        "zero3_nvme": 3,
        "zero3_offload": 3,
    }


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload", "zero3_nvme"])
def test_under_zero2_and_3_gradients_are_reduced_before_backward_ends(name):
    """DeepSpeed reduces what a bucket holds; one that holds all gradients of `base` is reduced at the end."""
    settings = fill(read(f"ds_configs/{name}.json"), DEMO, num_processes=2, on_cpu=True)["zero_optimization"]
    assert DeepSpeedZeroConfig(**settings).reduce_bucket_size == per_gpu.REDUCE_BUCKET == 50_000_000


def test_what_is_left_out_is_filled_in_too():
    assert fill(ZERO3, DEMO, 1, on_cpu=True)["gradient_clipping"] == 1.0


@pytest.mark.parametrize(("dtype", "enabled"), [("bfloat16", True), ("float32", False)])
def test_the_runs_dtype_is_the_engines_and_a_json_that_says_otherwise_clashes(dtype, enabled):
    config = replace(DEMO, run=replace(DEMO.run, dtype=dtype))
    assert fill(ZERO3, config, 1, on_cpu=True)["bf16"] == {"enabled": enabled, "check_grad_overflow": True}
    with pytest.raises(ValueError, match=f"bf16.enabled: the JSON says {not enabled}, the recipe {enabled}"):
        fill(ZERO3 | {"bf16": {"enabled": not enabled}}, config, 1, on_cpu=True)


def test_deepspeeds_timer_does_not_wait_for_the_device_unless_it_is_asked_to():
    """It would before and after each micro-batch, on a GPU."""
    assert fill(ZERO3, DEMO, 1, on_cpu=False)["timers"] == {"throughput": {"enabled": False}}
    asked = {"timers": {"throughput": {"enabled": True}}}
    assert fill(ZERO3 | asked, DEMO, 1, on_cpu=False)["timers"] == asked["timers"]
    with pytest.raises(ValueError, match=r"timers\.throughput: expected an object of settings, got 1"):
        fill(ZERO3 | {"timers": {"throughput": 1}}, DEMO, 1, on_cpu=True)


def test_the_given_settings_are_not_changed():
    given = {"train_batch_size": "auto", **ZERO3}
    fill(given, DEMO, 1, on_cpu=True)
    assert given == {"train_batch_size": "auto", **ZERO3}


def test_all_clashes_are_reported_together():
    given = {
        "train_batch_size": 16,
        "gradient_clipping": 0.5,
        "optimizer": {"params": {"lr": 0.1}},
        "fp16": {"enabled": True},
        "scheduler": {"type": "WarmupLR"},
        "compile": {"deepcompile": True},
        "torch_autocast": {"enabled": True, "dtype": "float16"},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "compute_grad_norm": False},
    }
    with pytest.raises(ValueError) as caught:
        fill(given, DEMO, 1, on_cpu=True)
    for part in (
        "train_batch_size: the JSON says 16, the recipe 32",
        "gradient_clipping: the JSON says 0.5",
        "optimizer.params.lr: the JSON says 0.1, the recipe 0.0015",
        "fp16.enabled",
        "scheduler",
        "compile.deepcompile",
        "torch_autocast.enabled",
        "zero_optimization.compute_grad_norm: the JSON says False, the recipe True",
        "zero_optimization.reduce_bucket_size: 'auto' has no counterpart",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("overlap", [True, None])
def test_gradients_that_another_stream_may_still_read_are_not_freed(overlap):
    """As shipped ZeRO-3 does not overlap; DeepSpeed's own default is that it does."""
    shipped = read("ds_configs/zero3.json")
    fill(shipped, DEMO, 2, on_cpu=False)
    zero = {key: value for key, value in shipped["zero_optimization"].items() if key != "overlap_comm"}
    overlapping = shipped | {"zero_optimization": zero | ({} if overlap is None else {"overlap_comm": overlap})}
    with pytest.raises(ValueError, match=r"overlap_comm .* beside contiguous_gradients false"):
        fill(overlapping, DEMO, 2, on_cpu=False)
    fill(overlapping, DEMO, 2, on_cpu=True)
    fill(overlapping, DEMO, 1, on_cpu=False)
    overlapping["zero_optimization"]["contiguous_gradients"] = True
    fill(overlapping, DEMO, 2, on_cpu=False)


def test_the_micro_batch_is_the_largest_that_divides_the_share():
    config = replace(DEMO, run=replace(DEMO.run, batch_rows=96, micro_batch_rows=20))
    assert micro_batch_rows(config, 1) == 16
    assert micro_batch_rows(config, 4) == 12


@pytest.mark.parametrize("processes", [3, 256])
def test_more_processes_than_rows_or_an_uneven_split_is_refused(processes):
    with pytest.raises(ValueError, match=rf"run.batch_rows = 32 cannot be split evenly over {processes} processes"):
        micro_batch_rows(DEMO, processes)


@pytest.mark.parametrize(
    ("rows", "most", "processes", "micro", "better"),
    [
        (2060, 64, 20, 1, 2040),
        (2034, 64, 18, 1, 2016),
        (2044, 64, 28, 1, 2016),
        (34, 32, 2, 17, None),
        (7, 64, 1, 7, None),
    ],
)
def test_a_batch_that_splits_into_small_pieces_alone_is_told_of(rows, most, processes, micro, better):
    config = replace(DEMO, run=replace(DEMO.run, batch_rows=rows, micro_batch_rows=most))
    note = note_of_small_pieces(config, processes)
    assert micro_batch_rows(config, processes) == micro
    if better is None:
        assert note == ""
    else:
        assert f"pieces of {micro} at most" in note
        assert f"run.batch_rows = {better} would take larger" in note


@pytest.mark.parametrize(("processes", "rows"), [(20, 2040), (3, 2046), (4096, 4096)])
def test_a_refusal_names_the_nearest_batch_that_splits_well(processes, rows):
    config = replace(DEMO, run=replace(DEMO.run, batch_rows=2048, micro_batch_rows=64))
    with pytest.raises(ValueError, match=rf"such as {rows}, or start fewer"):
        micro_batch_rows(config, processes)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list"), ("\x00", "is not JSON")])
def test_a_file_that_is_no_settings_is_refused(tmp_path, text, message):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        deepspeed_config.read(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no file; ds_configs/ holds"):
        deepspeed_config.read(str(tmp_path / "none.json"))


def test_a_relative_path_is_looked_for_beside_the_launchers_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert deepspeed_config.read(command_line.DEFAULT_DEEPSPEED, ROOT)["zero_optimization"]["stage"] == 3
    looked = f"'none.json' is no file in {str(tmp_path)!r} or {str(ROOT)!r}; ds_configs/ holds"
    with pytest.raises(ValueError, match=re.escape(looked)):
        deepspeed_config.read("none.json", ROOT)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / command_line.DEFAULT_DEEPSPEED).write_text('{"zero_optimization": {"stage": 1}}')
    own = deepspeed_config.read(command_line.DEFAULT_DEEPSPEED, ROOT)
    assert own["zero_optimization"]["stage"] == 1, "the current folder's first"


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "AdamW"},
        {"bf16": True},
        {"zero_optimization": 3},
        {"csv_monitor": True},
        {"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}},
        {"zero_optimization": {"stage": "three"}},
        {"zero_optimization": {"stage": 0}},
        {},
    ],
    ids=str,
)
def test_settings_of_the_wrong_form_are_refused(given):
    with pytest.raises(ValueError, match=r"expected an object of settings|choose 1, 2 or 3"):
        fill(given, DEMO, 1, on_cpu=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_adams_epsilon_is_as_large_beside_each_loss_as_in_joint_training(objective):
    """Its step m / (sqrt(v) + epsilon) for a loss that counts 50 times is that of the loss alone with a fiftieth."""
    recipe = recipes.get("electra_small") if objective == "joint" else DEMO  # whose generator is narrow
    run = replace(recipe.run, dtype="bfloat16")
    paths = "paths" if objective == "replay" else ""
    config = replace(recipe, objective=objective, initial_weights="", replacements=paths, run=run)
    filled = fill(ZERO3, config, 1, True)
    once = objective in ("frozen", "replay", "two_stage", "unigram", "random", "joint_decoupled")
    assert filled["optimizer"]["params"]["eps"] == pytest.approx(2e-8 if once else 1e-6)
    generator = deepspeed_config.for_generator(filled, config)
    assert generator["optimizer"]["params"] == filled["optimizer"]["params"] | {"eps": 1e-6}, "of a masked LM"
    named = replace(config, optimizer=replace(config.optimizer, epsilon=1e-8))
    assert fill(ZERO3, named, 1, True)["optimizer"]["params"]["eps"] == 1e-8
    assert "csv_monitor" not in deepspeed_config.for_generator(filled | {"csv_monitor": {"enabled": True}}, config)


def test_gradients_are_reduced_in_the_float32_they_are_added_in():
    assert fill({"zero_optimization": {"stage": 1}}, DEMO, 1, True)["communication_data_type"] == "fp32"
    assert "communication_data_type" not in fill(ZERO3, DEMO, 1, True), "at every micro-batch, in bf16"
    asked = {"zero_optimization": {"stage": 1}, "communication_data_type": "bf16"}
    assert fill(asked, DEMO, 1, True)["communication_data_type"] == "bf16"


def test_gradients_accumulate_in_float32():
    assert fill(ZERO3, DEMO, 1, on_cpu=True)["data_types"] == {"grad_accum_dtype": "fp32"}


def test_offload_to_nvme_from_a_gpu_needs_what_deepspeed_builds_its_operator_against(monkeypatch):
    nvme = read(str(next(path for path in SHIPPED if path.stem == "zero3_nvme")))
    monkeypatch.setattr(deepspeed_config.cpp_extension, "CUDA_HOME", None)
    with pytest.raises(ValueError, match=r"nvme needs the CUDA toolkit.*zero3_offload"):
        fill(nvme, DEMO, 1, on_cpu=False)
    assert (
        fill(nvme, DEMO, 1, on_cpu=True)["zero_optimization"]["offload_optimizer"]["nvme_path"] == "runs/demo/offload"
    )
    monkeypatch.setattr(deepspeed_config.cpp_extension, "CUDA_HOME", "a folder")
    assert fill(nvme, DEMO, 1, on_cpu=False)


def test_deepspeeds_own_optimizer_is_left_for_offload_from_a_gpu():
    offload = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    assert "torch_adam" not in fill(offload, DEMO, 1, on_cpu=False)["optimizer"]["params"]
    assert fill(ZERO3, DEMO, 1, on_cpu=False)["optimizer"]["params"]["torch_adam"] is True
