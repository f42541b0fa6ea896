"""Whole runs of the rivals: they resume, export both models, and the generator serves as someone's auxiliary model."""

import json

import pytest
import torch
from conftest import TINY, launch, metrics
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer


def run(output, corpus, objective, *arguments, num_processes=1):
    return launch(
        *TINY,
        "--run.steps=6",
        f"--corpus={corpus}",
        f"--output={output}",
        f"--objective={objective}",
        *arguments,
        num_processes=num_processes,
    )


def weights(output):
    return {
        f"{part}/{name}": weight
        for part in ("export", "generator")
        for name, weight in load_file(output / part / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def gdes(tiny_corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("gdes") / "run"
    run(output, tiny_corpus, "joint_gdes", "--deepspeed=ds_configs/zero1.json")
    return output


def test_a_joint_run_logs_and_exports_both_models(gdes):
    for row in (row for row in metrics(gdes) if "loss" in row):
        assert {"roc_auc", "floor", "generator_loss", "generator_accuracy"} <= set(row)
        assert "temperature" not in row
    for part, kind in (("export", AutoModelForTokenClassification), ("generator", AutoModelForMaskedLM)):
        _, info = kind.from_pretrained(gdes / part, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        AutoTokenizer.from_pretrained(gdes / part)
    summary = json.loads((gdes / "summary.json").read_text())
    assert summary["generator"] == str(gdes / "generator")


def test_gdes_exports_an_embedding_near_the_generators_and_not_equal(gdes):
    name = "model.embeddings.tok_embeddings.weight"
    delta = weights(gdes)[f"export/{name}"] - weights(gdes)[f"generator/{name}"]
    assert 0 < delta.abs().max() < 0.05


def test_a_joint_generator_serves_as_auxiliary_model_of_a_two_stage_run(gdes, tiny_corpus, tmp_path):
    done = run(tmp_path / "run", tiny_corpus, "two_stage", f"--auxiliary={gdes / 'generator'}")
    assert {row["temperature"] for row in metrics(tmp_path / "run") if "temperature" in row} == {1.0}
    assert f"auxiliary    {gdes / 'generator'}" in done.stdout


def test_two_engines_resume_as_if_never_stopped(tiny_corpus, tmp_path):
    arguments = (tiny_corpus, "joint_decoupled", "--generator.learning_rate_ratio=0.5")
    run(tmp_path / "whole", *arguments, num_processes=2)
    run(tmp_path / "parts", *arguments, "--run.stop_at_step=3", num_processes=2)
    done = run(tmp_path / "parts", *arguments, num_processes=2)
    assert "give it to --auxiliary of another run" in done.stdout
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    kept = json.loads((tmp_path / "parts" / "deepspeed.json").read_text())
    assert kept["optimizer"]["params"]["eps"] == pytest.approx(2e-8), "the discriminator's"


def test_a_fixed_statistic_needs_no_auxiliary_model(tiny_corpus, tmp_path):
    done = run(tmp_path / "run", tiny_corpus, "unigram")
    assert not (tmp_path / "run" / "auxiliary").exists()
    assert "temperature" not in done.stdout
