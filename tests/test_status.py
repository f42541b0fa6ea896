"""What status says of runs that go on, ended, failed or were killed, from the files that they left."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, clean_environment
from test_checkpoint import make

from fast_electra.batching import row_text
from fast_electra.batching.batches import Batches
from fast_electra.checkpoints import checkpoint
from fast_electra.corpora.corpus import Corpus
from fast_electra.pretraining import status
from fast_electra.runs import run_folder, run_state, summary
from fast_electra.settings import recipes


@pytest.fixture
def run(tmp_path, tiny_corpus):
    """A run's folder at step 100 of 400, 50 seconds in, with a checkpoint, held by this process."""
    config = replace(recipes.get("demo"), output=str(tmp_path / "run"), corpus=str(tiny_corpus))
    run_folder.claim(config)
    log = run_folder.MetricsLog(config.output, 0)
    log.write({"step": 100, "loss": 0.41, "seconds": 50.0, "skipped_updates": 2})
    make(tmp_path / "run" / "checkpoints", 80)
    yield config
    run_state.end(config.output, run_state.STOPPED)


def test_a_run_that_goes_on_tells_step_time_left_loss_and_a_whole_checkpoint(run):
    said = status.describe(status.of(run.output))
    assert f"{run.output}: running by process {os.getpid()} on " in said
    assert "step        100 of 400, 2 min left" in said
    assert "loss        0.4100, 2 updates left out" in said
    assert "checkpoint  step-00000080 (whole: every byte matches its hash)" in said
    assert "why" not in said


def test_a_damaged_checkpoint_is_named_and_left_where_it_is(run, tmp_path):
    weights = tmp_path / "run" / "checkpoints" / "step-00000080" / "zero" / "rank0.pt"
    weights.write_text("wEights")
    assert "(damaged: " in status.of(run.output)["checkpoint"]
    assert "(not checked)" in status.of(run.output, hashes=False)["checkpoint"]
    assert weights.exists()


def test_a_checkpoint_that_the_run_removes_meanwhile_is_not_called_damaged(run, tmp_path, monkeypatch):
    checkpoints, verified = tmp_path / "run" / "checkpoints", checkpoint.verified

    def while_the_run_goes_on(path):
        if path.name == "step-00000080":
            make(checkpoints, 90)
            shutil.rmtree(path)
        return verified(path)

    monkeypatch.setattr(checkpoint, "verified", while_the_run_goes_on)
    assert status.of(run.output)["checkpoint"] == "step-00000090 (whole: every byte matches its hash)"


def test_the_last_page_says_what_goes_on_how_and_what_was_not_counted():
    told = {"output": "runs/a", "stopped_at_step": 5}
    assert "stopped at step 5; the same command goes on" in summary.stopped(told | {"preempted": True})
    assert "as run.stop_at_step asked; raise it or leave it out" in summary.stopped(told | {"preempted": False})
    numbers = ("loss", "accuracy", "seconds", "tokens_per_second", "measured_peak_tflops", "peak_memory_gib")
    facts = dict.fromkeys((*numbers, "steps", "tokens", "weights", "num_processes", "export_logit_difference"), 1)
    facts |= {"recipe": "demo", "objective": "mlm", "dtype": "float32", "export": "e", "model_class": "M"}
    for nothing in (None, float("nan")):
        assert "MFU not counted of the 1.00 TFLOP/s" in summary.describe(facts | {"mfu": nothing})
    assert "MFU 25.0% of" in summary.describe(facts | {"mfu": 0.25})


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (run_state.FAILED, "step 101: the gradient is not finite"),
        (run_state.STOPPED, "as run.stop_at_step asked"),
        (run_state.PREEMPTED, "a signal asked for it"),
    ],
)
def test_a_run_that_ended_says_why(run, state, why):
    run_state.end(run.output, state, why if state == run_state.FAILED else "")
    said = status.describe(status.of(run.output))
    assert f"{run.output}: {state}, last sign of life " in said
    assert f"why         {why}" in said


def test_a_killed_run_is_dead(run, tmp_path):
    held = json.loads((tmp_path / "run" / "state.json").read_text())
    run_state.end(run.output, run_state.STOPPED)
    (tmp_path / "run" / "state.json").write_text(json.dumps(held))
    assert "why         its process is gone and said nothing" in status.describe(status.of(run.output))


def test_a_run_whose_auxiliary_model_trains_first_shows_how_far_that_is(tmp_path, tiny_corpus):
    config = replace(recipes.get("demo"), output=str(tmp_path / "run"), corpus=str(tiny_corpus))
    first = config.for_auxiliary()
    for each in (config, first):
        run_folder.claim(each)
    run_folder.MetricsLog(first.output, 0).write({"step": 150, "loss": 5.5, "seconds": 75.0, "skipped_updates": 0})
    said = status.describe(status.of(config.output))
    assert "step        0 of 400" in said
    assert f"first       its auxiliary model\n{first.output}: running by process {os.getpid()} on " in said
    assert "step        150 of 600, 4 min left" in said
    run_state.end(first.output, run_state.FINISHED)
    assert "its auxiliary model" not in status.describe(status.of(config.output))
    run_state.end(config.output, run_state.STOPPED)


def test_several_runs_and_a_folder_that_is_none(run, tmp_path):
    environment = clean_environment(PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu")
    command = [sys.executable, "launchers/status.py"]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False, "timeout": 120}
    both = subprocess.run([*command, run.output, run.output, "--no_hashes"], **options)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count(": running by process") == 2
    some = subprocess.run([*command, str(tmp_path), run.output, "--no_hashes"], **options)
    assert some.returncode == 0, "the others are shown"
    assert some.stdout.startswith(f"{run.output}: running by process")
    assert f"error: {str(tmp_path)!r} is no run's folder" in some.stderr
    none = subprocess.run([*command, str(tmp_path)], **options)
    assert none.returncode == 2
    assert "is no run's folder" in none.stderr
    rows = subprocess.run([*command, run.output, "--rows", "999999", "3"], **options)
    assert rows.returncode == 0, "the rows that there are are shown"
    assert rows.stdout.startswith("row 3: ")
    assert "error: row = 999999: the corpus has rows 0 to " in rows.stderr


def test_rows_are_printed_as_text(run, tiny_corpus):
    corpus = Corpus.open(tiny_corpus)
    batches = Batches([(corpus, 1.0)], run.data, run.seed)
    ((number, text),) = row_text.texts(run.output, [7])
    assert number == 7
    ids = batches.masked(np.array([7])).input_ids[0]
    expected = corpus.tokenizer.decode(torch.from_numpy(corpus.tokens[7 * 63 : 8 * 63].astype(np.int64)))
    assert text.split() == corpus.tokenizer.decode(ids, skip_special_tokens=True).split()
    assert text.split()[:5] == expected.split()[:5]
    with pytest.raises(ValueError, match=r"row = -1: the corpus has rows 0 to \d+"):
        list(row_text.texts(run.output, [-1]))
