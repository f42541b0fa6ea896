"""The README's and the manual's commands, run as they stand; only their size is cut down, by options at the end."""

import json
import lzma
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from conftest import clean_environment
from task_files import export, write_task
from transformers import BertConfig, BertForMaskedLM

from benchmarks import cases, costs, rows
from benchmarks.cases import Case
from fast_electra.settings import recipes

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "MANUAL.md")}
SMALL_RUN = """--run.steps=3 --run.batch_rows=8 --run.micro_batch_rows=8 --run.log_every=1 --data.held_out_rows=16
    --auxiliary_gate=false --data.sequence_length=32 --encoder.num_layers=2 --encoder.hidden_size=32
    --encoder.num_heads=2 --encoder.intermediate_size=48"""
ADDED = {"prepare_corpus.py": "--vocab_size 800", "pretrain.py": SMALL_RUN, "precompute_replacements.py": SMALL_RUN}


def below(heading):
    """What stands below a heading that one of the pages has, up to the next."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", "\n".join(PAGES.values()), re.DOTALL | re.M)
    return found


def commands(heading):
    """The commands of the first code block below a heading."""
    block = re.search(r"```\n(.*?)```", below(heading), re.DOTALL).group(1)
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(arguments, folder, timeout=300):
    environment = clean_environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """An empty folder with the launchers and settings in it."""
    for name in ("launchers", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_walk_through_leads_from_text_to_an_exported_discriminator(checkout, documents):
    with lzma.open(checkout / "wiki.txt.xz", "wt", preset=0) as file:
        file.write("\n\n".join(documents))
    steps = commands("Your own text")
    assert [Path(step[1]).name for step in steps] == ["prepare_corpus.py", "pretrain.py", "pretrain.py"]
    for step in steps:
        run([*step, *shlex.split(ADDED[Path(step[1]).name])], checkout)
    assert (checkout / "runs" / "small" / "export" / "model.safetensors").exists()
    assert json.loads((checkout / "runs" / "small" / "summary.json").read_text())["auxiliary"] == "runs/aux/export"

    precompute, train = commands("Replacement paths")
    assert [Path(step[1]).name for step in (precompute, train)] == ["precompute_replacements.py", "pretrain.py"]
    for step in (precompute, train):
        run([*step, *shlex.split(ADDED[Path(step[1]).name])], checkout)
    assert json.loads((checkout / "runs" / "small-replay" / "summary.json").read_text())["objective"] == "replay"


def test_a_published_model_becomes_the_auxiliary_model(checkout, documents, tiny_tokenizer):
    """Its commands as they stand, with a tiny BERT of that name in the folder."""
    with lzma.open(checkout / "wiki.txt.xz", "wt", preset=0) as file:
        file.write("\n\n".join(documents))
    tiny_tokenizer.save_pretrained(checkout / "bert-base-uncased")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shape = BertConfig(vocab_size=len(tiny_tokenizer), **sizes)
    BertForMaskedLM(shape).save_pretrained(checkout / "bert-base-uncased")
    prepare, train = commands("The auxiliary model")
    run(prepare, checkout)
    said = run([*train, *shlex.split(SMALL_RUN)], checkout)
    assert "runs/base-bert begins with the embeddings and 2 layers of bert-base-uncased" in said


def test_the_fine_tuning_command_takes_an_exported_folder(checkout):
    (checkout / "runs").mkdir()
    export(checkout / "runs" / "small" / "export")
    write_task(checkout / "data", "RTE")
    (step,) = commands("Fine-tuning")
    step[step.index("FOLDER")] = "data"
    print(run([*step, "--seeds=1", "--epochs=1", "--max_train_rows=16"], checkout))
    results = json.loads((checkout / "runs" / "small-glue" / "results.json").read_text())
    assert list(results["tasks"]) == ["RTE"] and "CoLA" in results["without_data"]


def table(heading):
    """The cells of the first table below a heading, row by row, its two headings left out."""
    lines = re.search(r"\n((?:\|[^\n]*\n)+)", below(heading)).group(1).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("row", table("What it saves"), ids=lambda row: row[0])
def test_the_savings_are_those_counted(row):
    recipe, rival = re.findall(r"`(\w+)`", row[0])
    counted = costs.count_all([Case(recipe, objective) for objective in ("frozen", "replay", *cases.rivals(recipe))])
    saved = [rows.the(costs.savings(counted), "saving", method=each, rival=rival)["saving"] for each in cases.METHODS]
    runs = {each["num_runs"]: each for each in rows.the(costs.total_costs(counted), "total_cost", rival=rival)["runs"]}
    totals = [f"{100 * runs[count]['frozen_to_rival']:.1f} %" for count in (1, 4)]
    assert row[1:] == [f"{100 * share:.1f} % less" for share in saved] + totals


@pytest.mark.parametrize("row", table("Does it learn as well?"), ids=lambda row: row[0])
def test_the_qualities_are_those_of_the_committed_rows(row):
    found = rows.select(rows.read(rows.ROOT / "benchmarks/results/quality.jsonl"), "quality", scale="4x128")
    (arm,) = re.findall(r"`(\w+)`", row[0])
    values = [each["judge_auc"] for each in rows.select(found, "quality", arm=arm)]
    flops = {each["flops"] for each in rows.select(found, "quality", arm=arm)}
    (rivals,) = {each["flops"] for each in rows.select(found, "quality", arm="joint_shallow")}
    assert row[1:3] == [str(len(values)), f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"]
    assert row[3] == f"{100 * flops.pop() / rivals:.0f} %"


@pytest.mark.parametrize("row", table("Recipes and settings"), ids=lambda row: row[0])
def test_the_manuals_sizes_are_the_recipes(row):
    recipe = recipes.get(row[0].strip("`"))
    shape, run, auxiliary = recipe.encoder, recipe.run, recipe.auxiliary_model
    assert row[1] == f"{shape.num_layers} x {shape.hidden_size}"
    assert row[2].replace(",", "") == f"{run.steps} of {run.batch_rows} x {recipe.data.sequence_length}"
    assert row[3].replace(",", "") == f"{auxiliary.encoder.num_layers} {auxiliary.steps}"


def test_the_manual_tells_the_size_of_every_recipe():
    assert {row[0].strip("`") for row in table("Recipes and settings")} == set(recipes.RECIPES)


def anchors(page):
    """The names under which a page's headings are found, as GitHub makes them."""
    heads = re.findall(r"^##+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_points_to_is_there(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    assert len(targets) > 5
    for target in targets:
        path, _, anchor = target.partition("#")
        assert path.startswith("https://") or not path or (ROOT / path).exists(), target
        assert not anchor or anchor in anchors(PAGES[path or name]), target
    if name == "MANUAL.md":
        assert anchors(re.sub("^###.*", "", PAGES[name], flags=re.M)) <= {each.lstrip("#") for each in targets}


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for arguments in commands("Two commands"):
        assert arguments[0] == "make"
        assert re.search(rf"^{arguments[1]}:", makefile, re.MULTILINE)
    assert "deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json" in makefile


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert lines[-1] == "exec make test"
    assert len(lines) == 3


def test_the_demo_learns_on_real_text(checkout):
    """The promise of `make pretrain`: some hundred steps, AUC over .65, loss under the majority-class floor."""
    command = "deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json"
    page = run(shlex.split(command), checkout, timeout=1500)
    summary = json.loads((checkout / "runs" / "demo" / "summary.json").read_text())
    assert summary["roc_auc"] > 0.65
    assert summary["loss"] < 0.97 * summary["floor"]
    assert summary["auxiliary_top1"] > 1.5 * summary["most_frequent_share"]
    loading = re.search(r"(    from transformers.*?\n    tokenizer.*?\n    model.*?\n)", page, re.DOTALL).group(1)
    lines = "\n".join(line.strip() for line in loading.splitlines())
    print(run([sys.executable, "-c", lines + "\nprint(type(model).__name__)"], checkout))
    assert "was already done" in run(shlex.split(command), checkout)
