"""Whole runs, started with the `deepspeed` launcher as a user starts them, at a size that takes seconds."""

import json
import re
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, clean_environment, launch, metrics, own_port
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

import fast_electra
from fast_electra.checkpoints import checkpoint
from fast_electra.pretraining import pretrain
from fast_electra.runs import command_line
from fast_electra.settings import config_file, recipes
from fast_electra.settings.run_config import RunConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def auxiliary(tiny_corpus, tmp_path_factory):
    """The folder of a tiny masked-LM run that has ended."""
    output = tmp_path_factory.mktemp("auxiliary") / "run"
    launch(*TINY, "--objective=mlm", f"--corpus={tiny_corpus}", f"--output={output}")
    return output


@pytest.fixture(scope="module")
def reference(tiny_corpus, auxiliary, tmp_path_factory):
    """A run that was never stopped: two processes, ZeRO-3."""
    output = tmp_path_factory.mktemp("reference") / "run"
    run(output, tiny_corpus, auxiliary, num_processes=2)
    return output


def run(output, corpus, auxiliary, *arguments, num_processes=1, check=True, timeout=240):
    return launch(
        *TINY,
        f"--corpus={corpus}",
        f"--auxiliary={auxiliary / 'export'}",
        f"--output={output}",
        *arguments,
        num_processes=num_processes,
        check=check,
        timeout=timeout,
    )


def weights(output):
    return load_file(output / "export" / "model.safetensors")


def norms(output):
    """Adam hides a wrong scale of the gradients; their norm does not."""
    return [row["gradient_norm"] for row in metrics(output) if "gradient_norm" in row]


def losses(output):
    return [row["loss"] for row in metrics(output) if "loss" in row]


def replaced(output):
    return [row["replaced_share"] for row in metrics(output) if "replaced_share" in row]


def test_a_run_leaves_what_was_promised(reference):
    summary = json.loads((reference / "summary.json").read_text())
    for key in (
        "roc_auc",
        "loss",
        "floor",
        "tokens_per_second",
        "mfu",
        "measured_peak_tflops",
        "peak_memory_gib",
        "export",
    ):
        assert key in summary
    assert 0 < summary["startup_seconds"] < 240
    assert summary["temperature_start"] == 2.0
    assert summary["temperature_end"] < 1.01
    rows = [row for row in metrics(reference) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["rows_seen"] for row in rows] == [16 * step for step in range(1, 9)]
    assert [row["tokens"] for row in rows] == [16 * 32 * step for step in range(1, 9)]
    expected = """temperature floor replaced_share auxiliary_accuracy precision recall roc_auc learning_rate
        gradient_norm tokens_per_second mfu peak_memory_gib"""
    for key in expected.split():
        assert key in rows[0]
    assert [row["step"] for row in metrics(reference) if "held_out" in row] == [4, 8]
    assert json.loads((reference / "environment.json").read_text())["libraries"]["deepspeed"]
    assert json.loads((reference / "config.json").read_text())["run"]["steps"] == 8
    assert list((reference / "monitor").rglob("*.csv"))
    assert len(list((reference / "checkpoints").glob("step-*"))) == 2


def test_the_temperature_descends_and_the_samples_improve_with_it(reference):
    temperatures = [row["temperature"] for row in metrics(reference) if "temperature" in row]
    assert temperatures == sorted(temperatures, reverse=True)


def test_the_export_loads_with_stock_transformers(reference, tiny_corpus):
    tokenizer = AutoTokenizer.from_pretrained(reference / "export")
    model, info = AutoModelForTokenClassification.from_pretrained(reference / "export", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model(**tokenizer("a stock model", return_tensors="pt")).logits.shape[-1] == 1
    _, info = AutoModel.from_pretrained(reference / "export", output_loading_info=True)
    assert not info["missing_keys"]
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_corpus / "tokenizer").get_vocab()
    assert len({file.stat().st_mode for file in (reference / "export").iterdir()}) == 1, "whoever reads one reads all"


def test_a_masked_lm_is_exported_with_its_head_and_serves_as_auxiliary(auxiliary):
    _, info = AutoModelForMaskedLM.from_pretrained(auxiliary / "export", output_loading_info=True)
    assert not info["missing_keys"]


def test_stop_and_resume_equals_never_stopped_bit_for_bit(reference, tiny_corpus, auxiliary, tmp_path):
    output = tmp_path / "run"
    stopped = run(output, tiny_corpus, auxiliary, "--run.stop_at_step=3", num_processes=2)
    assert "stopped at step 3, as run.stop_at_step asked" in stopped.stdout
    assert not (output / "export").exists()
    run(output, tiny_corpus, auxiliary, num_processes=2)
    expected, got = weights(reference), weights(output)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert losses(output) == losses(reference)


def test_a_step_is_saved_too_when_minutes_have_passed_and_does_not_stay_for_good(tiny_corpus, tmp_path):
    rhythm = ["log_every=3", "save_every=4", "keep_every=1", "keep_checkpoints=3"]
    saved = []
    for minutes in ("1e-9", "1000", "0"):
        output = tmp_path / minutes
        given = [f"--run.{each}" for each in (*rhythm, f"save_minutes={minutes}")]
        launch(*TINY, "--objective=random", f"--corpus={tiny_corpus}", f"--output={output}", *given, num_processes=2)
        saved.append(sorted(int(each.name[-8:]) for each in (output / "checkpoints").glob("step-*")))
    assert saved == [[4, 6, 8], [4, 8], [4, 8]]


def test_a_finished_run_says_so(reference, tiny_corpus, auxiliary):
    again = run(reference, tiny_corpus, auxiliary, num_processes=2)
    assert "was already done; nothing was run" in again.stdout


def test_one_process_trains_what_two_train(reference, tiny_corpus, auxiliary, tmp_path):
    run(tmp_path / "run", tiny_corpus, auxiliary)
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=2e-3)
    assert replaced(tmp_path / "run") == replaced(reference)
    assert norms(tmp_path / "run") == pytest.approx(norms(reference), rel=0.02)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3_offload"])
def test_every_zero_stage_trains_the_same(stage, reference, tiny_corpus, auxiliary, tmp_path):
    run(tmp_path / "run", tiny_corpus, auxiliary, f"--deepspeed=ds_configs/{stage}.json", num_processes=2)
    got, expected = losses(tmp_path / "run"), losses(reference)
    assert replaced(tmp_path / "run") == replaced(reference), "the auxiliary model's answers, to the last sample"
    assert got[0] == pytest.approx(expected[0], rel=1e-6), "same weights, rows, masks and samples"
    assert norms(tmp_path / "run")[0] == pytest.approx(norms(reference)[0], rel=1e-3)
    assert got == pytest.approx(expected, rel=3e-2), "Adam's first steps magnify bf16 rounding; float32: test_joint.py"


@pytest.mark.slow
def test_optimizer_state_on_nvme_trains_the_same_and_is_not_resumed(tiny_corpus, auxiliary, tmp_path):
    """Of a model large enough that DeepSpeed really swaps: a state of less than 1 MiB stays in memory."""
    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible():
        pytest.skip("DeepSpeed cannot build async_io here: it needs a C++ compiler and libaio (Debian: libaio-dev)")
    large = ("--encoder.hidden_size=192", "--encoder.intermediate_size=256", "--run.stop_at_step=4")
    run(tmp_path / "memory", tiny_corpus, auxiliary, *large)
    nvme = [*large, "--deepspeed=ds_configs/zero3_nvme.json"]
    run(tmp_path / "nvme", tiny_corpus, auxiliary, *nvme, timeout=1800)
    assert list((tmp_path / "nvme" / "offload").rglob("exp_avg_sq*.swp"))
    assert losses(tmp_path / "nvme") == pytest.approx(losses(tmp_path / "memory"), rel=1e-3)
    for deepspeed in ("zero3_nvme", "zero3"):
        arguments = (*large[:2], f"--deepspeed=ds_configs/{deepspeed}.json")
        again = run(tmp_path / "nvme", tiny_corpus, auxiliary, *arguments, check=False)
        assert again.returncode == 2
        assert "cannot be resumed" in again.stderr and "ds_configs/zero3_offload.json" in again.stderr


def test_without_an_auxiliary_model_one_is_trained_first_and_found_when_the_folder_has_moved(tiny_corpus, tmp_path):
    steps = ("--run.steps=2", "--auxiliary_model.steps=1")
    small = [f"--auxiliary_model.{part.removeprefix('--')}" for part in TINY if "encoder" in part]
    whole = (*TINY, *small, *steps, f"--corpus={tiny_corpus}")
    launch(*whole, "--run.stop_at_step=1", f"--output={tmp_path / 'run'}")
    assert (tmp_path / "run" / "auxiliary" / "export" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "export").exists()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    done = launch(*whole, f"--output={moved}")
    assert "AutoTokenizer.from_pretrained" in done.stdout
    assert json.loads((moved / "summary.json").read_text())["auxiliary"] == str(moved / "auxiliary" / "export")


@pytest.mark.parametrize(
    ("met", "told"),
    [
        ("Connection closed by peer [127.0.0.1]:4242", (RuntimeError, "^Connection closed by peer")),
        (
            "[enforce fail at inline_container.cc:672] . unexpected pos",
            (OSError, "could not be written to .*GiB are free"),
        ),
    ],
)
def test_what_ends_a_save_is_told_as_what_it_was(met, told, tmp_path, monkeypatch):
    """torch tells of a failed disk by the same kind of error as of another process that is gone."""

    def fail(*_):
        raise RuntimeError(met)

    monkeypatch.setattr(checkpoint, "save", fail)
    (tmp_path / "checkpoints").mkdir()
    config = replace(recipes.get("demo"), output=str(tmp_path))
    run = SimpleNamespace(config=config, engine=None, generator=None, position=checkpoint.START)
    with pytest.raises(told[0], match=told[1]):
        pretrain.save(run)


def test_electras_own_shape_trains_and_exports_as_such(tiny_corpus, auxiliary, tmp_path):
    run(
        tmp_path / "run",
        tiny_corpus,
        auxiliary,
        "--encoder.model_type=electra",
        "--encoder.embedding_size=16",
        "--encoder.dropout=0.1",
        "--encoder.attention_dropout=0.1",
        "--run.steps=2",
    )
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert config["architectures"] == ["ElectraForPreTraining"]
    assert config["embedding_size"] == 16
    assert (config["id2label"], config["label2id"]) == ({"0": "replaced"}, {"replaced": 0})


@pytest.mark.slow
def test_compiled_layers_train_the_same(reference, tiny_corpus, auxiliary, tmp_path):
    run(tmp_path / "run", tiny_corpus, auxiliary, "--run.compile=true", "--run.stop_at_step=2", num_processes=1)
    assert losses(tmp_path / "run") == pytest.approx(losses(reference)[:2], rel=5e-3)


@pytest.mark.slow
def test_compiled_too_stop_and_resume_equals_never_stopped_bit_for_bit(tiny_corpus, auxiliary, tmp_path):
    """On all cores, whose atomic additions would come in any order; in float32, where no rounding hides it."""
    settings = tmp_path / "zero1.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    how = (f"--deepspeed={settings}", "--run.compile=true", "--run.dtype=float32", "--encoder.hidden_size=128")
    how += ("--auxiliary_engine=compiled",)
    found = []
    for stops in ((), (3, 6)):
        output = tmp_path / f"stopped at {stops}"
        for step in (*stops, 0):
            run(output, tiny_corpus, auxiliary, *how, f"--run.stop_at_step={step}")
        found.append((losses(output), weights(output)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(weight, found[1][1][name]) for name, weight in found[0][1].items())


def refused(*arguments, **options):
    done = launch(*arguments, check=False, **options)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr


def test_more_processes_than_rows_are_refused(tiny_corpus, tmp_path):
    arguments = [*TINY, f"--corpus={tiny_corpus}", f"--output={tmp_path / 'run'}", "--run.batch_rows=1"]
    assert "run.batch_rows = 1 cannot be split evenly over 2 processes" in refused(*arguments, num_processes=2)
    assert not (tmp_path / "run").exists()


def test_a_corpus_with_a_changed_byte_is_refused(tiny_corpus, auxiliary, tmp_path):
    import shutil

    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "corpus.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    message = refused(*TINY, f"--corpus={tmp_path / 'corpus'}", f"--output={tmp_path / 'run'}", "--objective=mlm")
    assert "corpus.bin" in message


def test_an_auxiliary_model_on_the_plateau_is_refused(tiny_corpus, auxiliary, tmp_path):
    arguments = [*TINY, f"--corpus={tiny_corpus}", f"--output={tmp_path / 'run'}", "--auxiliary_gate=true"]
    message = refused(*arguments, f"--auxiliary={auxiliary / 'export'}")
    assert "always naming the most frequent token" in message


def test_a_missing_corpus_is_refused_and_leaves_no_folder(tmp_path):
    message = refused(*TINY, f"--corpus={tmp_path / 'nowhere'}", f"--output={tmp_path / 'run'}", "--objective=mlm")
    assert "nowhere" in message
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused(reference, tiny_corpus, auxiliary):
    message = refused(*TINY, f"--corpus={tiny_corpus}", f"--output={reference}", "--seed=9", "--objective=mlm")
    assert "holds another run" in message
    assert "seed: 0 there, 9 now" in message


def test_a_port_that_another_run_has_taken_is_refused_with_one_to_try(tmp_path):
    with socket.create_server(("", own_port(2))) as other:
        port = other.getsockname()[1]
        done = launch(*TINY, f"--output={tmp_path / 'run'}", "--objective=mlm", num_processes=2, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error (process 0 ")]
    assert f": port {port} is taken, most likely by another run on this machine: " in line
    assert f"`deepspeed --master_port {port + 1} ...`" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_packages_own_example_trains_from_python(tiny_corpus, auxiliary, tmp_path):
    """As it stands in fast_electra/__init__.py; the recipe alone is a smaller one."""
    code = textwrap.dedent(re.search(r"\n\n((?:    .*\n|\n)+)", fast_electra.__doc__)[1])
    config_file.save(replace(command_line.parse(TINY, "")[0], run=RunConfig(4, 16, 8)), tmp_path / "tiny.json")
    code = code.replace('recipes.get("small")', 'config_file.load(Path("tiny.json"))')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wiki").symlink_to(tiny_corpus)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "aux").symlink_to(auxiliary)
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    code = "from pathlib import Path\nfrom fast_electra.settings import config_file\n" + code
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=240)
    assert (tmp_path / "runs" / "small" / "export" / "model.safetensors").exists()
