"""Whole runs with documents kept apart: resumed, on one and two processes, and what their summary claims."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, clean_environment, launch, metrics
from safetensors.torch import load_file

from fast_electra.corpora import corpus

APART = "--data.separate_documents=true"


def run(output, folder, *arguments, num_processes=1, check=True):
    given = [*TINY, f"--corpus={folder}", f"--output={output}", *arguments]
    return launch(*given, num_processes=num_processes, check=check)


@pytest.fixture(scope="module")
def short(tmp_path_factory, documents):
    """A corpus of documents much shorter than a row: five words each."""
    folder = tmp_path_factory.mktemp("short")
    words = " ".join(documents).split()[:40_000]
    lines = [" ".join(words[start : start + 5]) for start in range(0, len(words), 5)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    corpus.build([str(folder / "text.txt")], folder / "corpus", vocab_size=512, workers=1, progress=False)
    return folder / "corpus"


@pytest.fixture(scope="module")
def auxiliary(short, tmp_path_factory):
    """The folder of a masked LM that was trained on separated documents itself."""
    output = tmp_path_factory.mktemp("auxiliary") / "run"
    run(output, short, APART, "--objective=mlm")
    return f"--auxiliary={output / 'export'}"


@pytest.fixture(scope="module")
def reference(short, auxiliary, tmp_path_factory):
    """A run on two processes that was stopped after three steps and has gone on; what it printed at its end."""
    output = tmp_path_factory.mktemp("reference") / "run"
    run(output, short, auxiliary, APART, "--run.stop_at_step=3", num_processes=2)
    return output, run(output, short, auxiliary, APART, num_processes=2).stdout


def logged(output, key):
    return [row[key] for row in metrics(output) if key in row]


def test_stop_and_resume_equals_never_stopped_bit_for_bit(reference, short, auxiliary, tmp_path):
    run(tmp_path / "run", short, auxiliary, APART, num_processes=2)
    expected, got = (load_file(each / "export" / "model.safetensors") for each in (reference[0], tmp_path / "run"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert logged(tmp_path / "run", "loss") == logged(reference[0], "loss")


def test_one_process_trains_what_two_train(reference, short, auxiliary, tmp_path):
    run(tmp_path / "run", short, auxiliary, APART)
    assert logged(tmp_path / "run", "loss") == pytest.approx(logged(reference[0], "loss"), rel=2e-3)
    assert logged(tmp_path / "run", "replaced_share") == logged(reference[0], "replaced_share")
    assert logged(tmp_path / "run", "gradient_norm") == pytest.approx(logged(reference[0], "gradient_norm"), rel=0.02)


def test_the_summary_counts_what_is_left_and_claims_no_saving_on_a_cpu(reference, short, auxiliary, tmp_path):
    output, printed = reference
    summary = json.loads((output / "summary.json").read_text())
    assert 0 < summary["separated_attention_share"] < 0.9
    assert summary["separated_attention_share"] < summary["separated_flops_share"] < 1
    assert summary["separation_skips"] is False
    assert "the rest is computed all the same under a block mask, and counted in MFU" in printed
    run(tmp_path / "together", short, auxiliary)
    together = json.loads((tmp_path / "together" / "summary.json").read_text())
    assert together["flops_per_token"] == summary["flops_per_token"]
    assert "separation_skips" not in together
    assert logged(tmp_path / "together", "loss") != logged(output, "loss")


def test_a_run_does_not_go_on_with_documents_together(reference, short, auxiliary):
    done = run(reference[0], short, auxiliary, check=False)
    assert done.returncode != 0
    assert "data.separate_documents: True there, False now" in done.stderr


def test_replacement_paths_of_separated_documents_are_replayed_on_such_only(short, auxiliary, tmp_path):
    script = [sys.executable, "launchers/precompute_replacements.py", "--draws=1", auxiliary, f"--corpus={short}"]
    data = ["--data.sequence_length=32", "--data.held_out_rows=32", "--auxiliary_gate=false", APART]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    paths = tmp_path / "paths"
    subprocess.run([*script, *data, f"--output={paths}"], cwd=ROOT, env=environment, check=True, timeout=240)
    replaying = ("--objective=replay", f"--replacements={paths}", "--run.steps=2")
    run(tmp_path / "run", short, *replaying, APART)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["separated_attention_share"] < 0.9
    done = run(tmp_path / "other", short, *replaying, check=False)
    assert done.returncode != 0
    assert "separate_documents is True, not False" in done.stderr
