"""Fine-tuning learns every task from official files, goes on where it stopped, and is as good as run_glue."""

import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import clean_environment, start, wait_for
from scipy import stats
from sklearn.metrics import accuracy_score
from task_files import ENTAILMENT, export, write_hard_rte, write_squad, write_task
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    ElectraConfig,
    Trainer,
    TrainingArguments,
)

from fast_electra.evaluation import scores
from fast_electra.finetuning import finetune_runs, glue, squad, task_head, tasks
from fast_electra.finetuning.finetune import Job, Settings, finetune
from fast_electra.methods.divergence import DivergedError
from fast_electra.runs import run_folder, run_state

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "launchers" / "finetune.py"
LEARNS = Settings(epochs=8, learning_rate=5e-3, batch_rows=16, bf16=False)
ONE_STEP = Settings(max_train_rows=16, epochs=1, bf16=False)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: export(folder / kind, kind) for kind in ("modernbert", "electra")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All tasks' official files, those of GLUE with test sets."""
    folder = tmp_path_factory.mktemp("files")
    for task in glue.TASKS:
        write_task(folder, task, test=7)
    (folder / "AX").mkdir()
    (folder / "AX" / "AX.tsv").write_text("index\tsentence1\tsentence2\n0\tw1\tgood w2\n1\tw2\tdull w4\n")
    for task in squad.TASKS:
        write_squad(folder, task[-3:])
    return str(folder)


@pytest.mark.parametrize("task", [*glue.TASKS, *squad.TASKS])
def test_every_task_is_learned(task, encoders, files, tmp_path):
    result = finetune(encoders["modernbert"], task, 1, files, str(tmp_path), LEARNS)
    assert all(value > 85 for name, value in result["metrics"].items()), result["metrics"]
    folder = tmp_path / "predictions" / "seed-1"
    names = {"MNLI": {"MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}}.get(task, {f"{task}.tsv"})
    if task in squad.TASKS:
        answers = json.loads((folder / f"{task}.json").read_text())
        assert len(answers) == 32 and "mark good" in answers.values()
        return
    assert {path.name for path in folder.iterdir()} == names
    for name in names - {"AX.tsv"}:
        header, *lines = (folder / name).read_text().splitlines()
        labels = glue.TASKS[task].labels
        assert header == "index\tprediction" and [line.split("\t")[0] for line in lines] == [*"0123456"]
        if labels:  # the test sets hold the same signal, labels in turn
            right = [line.split("\t")[1] == labels[index % len(labels)] for index, line in enumerate(lines)]
            assert sum(right) >= 6, lines


@pytest.mark.parametrize("task", ["CoLA", "STS-B", "SQuAD-2.0"])
def test_an_electra_export_is_fine_tuned_too(task, encoders, files):
    assert finetune(encoders["electra"], task, 1, files, None, LEARNS)["score"] > 85


def test_the_recipe_is_the_papers_by_task_and_width():
    def chosen(task, width):
        full = Settings().resolved(task, width, 128)
        return full.epochs, full.learning_rate, full.layer_decay

    assert chosen("CoLA", 256) == (3, 3e-4, 0.8)
    assert chosen("RTE", 768) == chosen("STS-B", 768) == (10, 1e-4, 0.8)
    assert chosen("SQuAD-1.1", 1024) == (2, 5e-5, 0.9)
    assert Settings(epochs=1, learning_rate=1e-5, layer_decay=1.0).resolved("RTE", 64, 128).learning_rate == 1e-5


def test_trainer_is_given_the_layers_rates_warm_up_and_linear_decay(encoders, files):
    job = Job(encoders["modernbert"], "RTE", files, Settings(batch_rows=16, epochs=5, layer_decay=0.5, bf16=False))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = job._trainer(task_head.load(job.model, 2, 64, seed=1), 1, scratch, "x")
        trainer.create_optimizer_and_scheduler(40)
    factors = []
    for _ in range(40):
        factors.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    factors = np.array(factors)
    assert {round(value, 9) for value in factors[4]} == {round(3e-4 * 0.5**n, 9) for n in (0, 2, 3, 4)}, (
        "embeddings first"
    )
    shape = np.array([*(np.arange(4) / 4), *(np.arange(36, 0, -1) / 36)])
    assert np.allclose(factors / factors[4], shape[:, None])
    options = trainer.optimizer.defaults
    assert (options["betas"], options["eps"]) == ((0.9, 0.999), 1e-6)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.01}


def test_a_seed_gives_the_same_result_again_and_another_seed_another(encoders, files):
    results = [finetune(encoders["modernbert"], "CoLA", seed, files, None, ONE_STEP) for seed in (1, 1, 2)]
    losses = [one["train_loss"] for one in results]
    assert losses[0] == losses[1] != losses[2]
    assert results[0]["train_rows"] == 16 and results[0]["steps"] == 1


@pytest.mark.parametrize("task", ["CoLA", "STS-B", "SQuAD-1.1"])
def test_bf16_rounds_the_loss_and_no_more(task, encoders, files):
    losses = {
        bf16: finetune(encoders["electra"], task, 1, files, None, replace(ONE_STEP, bf16=bf16))["train_loss"]
        for bf16 in (False, True)
    }
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert losses[True] != losses[False]


def test_a_finished_run_is_not_run_again_and_a_killed_one_is(encoders, files, tmp_path, monkeypatch):
    arguments = (encoders["modernbert"], "CoLA,AX", 2, files, str(tmp_path), ONE_STEP)
    trained, train = [], Trainer.train

    def killed_at_the_third(trainer):
        trained.append(trainer.args.seed)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(trainer)

    monkeypatch.setattr(Trainer, "train", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune_runs.finetune_all(*arguments)
    assert not (tmp_path / "MNLI").exists()
    before = json.loads((tmp_path / "results.json").read_text())
    results = finetune_runs.finetune_all(*arguments)
    assert trained == [1, 2, 1, 1, 2], "CoLA twice, MNLI's first cut short; then MNLI's two only"
    assert results["tasks"]["CoLA"] == before["tasks"]["CoLA"] and set(results["tasks"]) == {"CoLA", "MNLI"}
    assert results == json.loads((tmp_path / "results.json").read_text())
    values = results["tasks"]["MNLI"]["accuracy_mm"]
    assert values["median"] == statistics.median(values["seeds"].values()) and set(values["seeds"]) == {"1", "2"}


def test_a_signal_ends_the_launcher_at_once_and_a_second_one_in_the_folder_is_refused(encoders, files, tmp_path):
    arguments = [f"--model={encoders['modernbert']}", f"--data={files}", f"--output={tmp_path}", "--bf16=false"]
    given = [sys.executable, str(LAUNCHER), *arguments, "--tasks=CoLA", "--seeds=1", "--epochs=5000"]
    with start(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        wait_for((tmp_path / run_state.NAME).exists, running)
        refused = launch(*arguments, "--tasks=CoLA", "--seeds=1")
        assert refused.returncode == 2
        assert f"process {running.pid} on " in refused.stderr
        running.terminate()
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 75, said
    assert "stopped; the same command goes on with the run that was not done" in said
    assert run_state.read(str(tmp_path))["state"] == run_state.PREEMPTED
    assert [path.name for path in tmp_path.iterdir()] == [run_state.NAME]


def test_results_of_other_settings_data_or_weights_are_refused(encoders, files, tmp_path):
    finetune(encoders["modernbert"], "WNLI", 1, files, str(tmp_path / "out"), ONE_STEP)
    with pytest.raises(ValueError, match=r"settings\.max_train_rows: 16 there, 17 now"):
        changed = Settings(max_train_rows=17, epochs=1, bf16=False)
        finetune(encoders["modernbert"], "WNLI", 1, files, str(tmp_path / "out"), changed)
    with pytest.raises(ValueError, match=r"seed-1\.json' is a result of other inputs.*\n  weights: "):
        finetune(encoders["electra"], "WNLI", 1, files, str(tmp_path / "out"), ONE_STEP)
    (tmp_path / "out" / "WNLI" / "seed-2.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed-2\.json' is broken.*Remove it, and the same command runs this seed"):
        finetune(encoders["modernbert"], "WNLI", 2, files, str(tmp_path / "out"), ONE_STEP)
    write_task(tmp_path / "other", "WNLI", seed=1)
    with pytest.raises(ValueError, match=r"  data: "):
        finetune(encoders["modernbert"], "WNLI", 1, str(tmp_path / "other"), str(tmp_path / "out"), ONE_STEP)


def test_all_takes_what_the_folder_has_and_names_the_rest(encoders, tmp_path, capsys, monkeypatch):
    write_task(tmp_path / "data", "RTE")
    write_squad(tmp_path / "data", "1.1", train=8, dev=4)
    run, told = Job.run, []
    monkeypatch.setattr(Job, "run", lambda *given: told.append(capsys.readouterr().out) or run(*given))
    results = finetune_runs.finetune_all(
        encoders["modernbert"], "all", 1, str(tmp_path / "data"), str(tmp_path / "out"), ONE_STEP
    )
    assert set(results["tasks"]) == {"RTE", "SQuAD-1.1"}
    assert len(results["without_data"]) == len(glue.TASKS) - 1 + 1 and "SQuAD-2.0" in results["without_data"]
    assert results["environments"] == [run_folder.environment()]
    assert f"has nothing of {', '.join(results['without_data'])}: left out" in told[0], "before the first is trained"


def test_what_is_wrong_with_a_later_task_is_told_before_the_first_is_trained(encoders, tmp_path):
    for name in ("CoLA", "RTE"):
        write_task(tmp_path / "data", name)
    (tmp_path / "data" / "RTE" / "dev.tsv").unlink()
    with pytest.raises(ValueError, match=r"RTE/dev\.tsv"):
        finetune_runs.finetune_all(
            encoders["modernbert"], "CoLA,RTE", 1, str(tmp_path / "data"), str(tmp_path / "out"), ONE_STEP
        )
    assert not (tmp_path / "out" / "CoLA").exists()


def test_tasks_that_were_given_unlike_numbers_of_rows_have_no_average():
    def one(most):
        run = {"seed": 1, "score": 50.0, "metrics": {}, "seconds_training": 1, "seconds_evaluating": 1}
        return run | {"identity": {"settings": {"max_train_rows": most}}}

    alike = {name: [one(None)] for name in scores.AVERAGED}
    assert finetune_runs._results("m", "w", alike, [])["glue_average"] == 50
    assert finetune_runs._results("m", "w", alike | {"RTE": [one(2000)]}, [])["glue_average"] is None
    assert finetune_runs._results("m", "w", alike | {"SQuAD-1.1": [one(2000)]}, [])["glue_average"] == 50


def test_a_later_start_with_other_tasks_keeps_the_earlier_ones_and_takes_no_other_model(encoders, files, tmp_path):
    model, out = encoders["modernbert"], str(tmp_path / "out")
    first = finetune_runs.finetune_all(model, "CoLA", 1, files, out, ONE_STEP)
    both = finetune_runs.finetune_all(model, "WNLI", 1, files, out, ONE_STEP)
    assert set(both["tasks"]) == set(both["settings"]) == {"CoLA", "WNLI"}
    assert both["tasks"]["CoLA"] == first["tasks"]["CoLA"]
    with pytest.raises(ValueError, match=r"CoLA/seed-1\.json' is a result of another model .*name a new folder"):
        finetune_runs.finetune_all(encoders["electra"], "RTE", 1, files, out, ONE_STEP)
    changed = shutil.copytree(model, tmp_path / "changed")
    settings = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(settings | {"mlp_dropout": 0.5}))
    with pytest.raises(ValueError, match=r"is a result of another model \(model: "):
        finetune_runs.finetune_all(str(changed), "RTE", 1, files, out, ONE_STEP)
    assert not (tmp_path / "out" / "RTE").exists()


def test_more_seeds_lose_none_that_are_done_and_fewer_leave_the_others_out(encoders, files, tmp_path, monkeypatch):
    model, out = encoders["modernbert"], tmp_path / "out"
    finetune_runs.finetune_all(model, "CoLA,WNLI", 2, files, str(out), ONE_STEP)

    def stopped(self, seed, *_):
        if seed == 3:
            raise KeyboardInterrupt
        return run(self, seed, *_)

    run = Job.run
    monkeypatch.setattr(Job, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune_runs.finetune_all(model, "CoLA,WNLI", 3, files, str(out), ONE_STEP)
    left = json.loads((out / "results.json").read_text())["tasks"]
    assert {name: set(each["score"]["seeds"]) for name, each in left.items()} == {
        "CoLA": {"1", "2"},
        "WNLI": {"1", "2"},
    }
    fewer = finetune_runs.finetune_all(model, "CoLA", 1, files, str(out), ONE_STEP)["tasks"]
    assert (set(fewer["CoLA"]["score"]["seeds"]), set(fewer["WNLI"]["score"]["seeds"])) == ({"1"}, {"1", "2"})


def test_another_config_or_tokenizer_is_another_model(encoders, files, tmp_path):
    model, out = tmp_path / "model", str(tmp_path / "out")
    shutil.copytree(encoders["modernbert"], model)
    finetune(str(model), "WNLI", 1, files, out, ONE_STEP)
    place = model / "config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps(settings | {"transformers_version": "another"}))
    finetune(str(model), "WNLI", 1, files, out, ONE_STEP)
    place.write_text(json.dumps(settings | {"mlp_dropout": 0.5}))
    with pytest.raises(ValueError, match=r"other inputs.*\n  model: "):
        finetune(str(model), "WNLI", 1, files, out, ONE_STEP)
    place.write_text(json.dumps(settings))
    words = json.loads((model / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (model / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"other inputs.*\n  tokenizer: "):
        finetune(str(model), "WNLI", 1, files, out, ONE_STEP)


def test_a_model_is_given_no_longer_rows_than_it_was_trained_on(encoders, files, tmp_path):
    words = AutoTokenizer.from_pretrained(encoders["electra"])
    shutil.copytree(encoders["electra"], tmp_path / "model")
    words.model_max_length = 24
    words.save_pretrained(tmp_path / "model")
    assert Job(str(tmp_path / "model"), "SQuAD-2.0", files, ONE_STEP).settings.max_length == 24
    assert Job(encoders["electra"], "SQuAD-2.0", files, ONE_STEP).settings.max_length == 64
    with pytest.raises(ValueError, match=r"max_length = 12: SQuAD-2.0 needs room .*give 16"):
        Job(encoders["electra"], "SQuAD-2.0", files, replace(ONE_STEP, max_length=12))


def test_rows_are_not_padded_past_the_last_position(encoders, files, tmp_path):
    short = shutil.copytree(encoders["electra"], tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    positions = config["max_position_embeddings"]
    assert Job(str(short), "SQuAD-1.1", files, Settings(bf16=False)).padding == 8
    for wanted, padded in ((positions - 8, 8), (positions - 4, 8), (positions, 8)):
        assert task_head.padding(ElectraConfig(**config), wanted) == padded
    assert (
        task_head.padding(ElectraConfig(**config | {"max_position_embeddings": positions - 4}), positions - 4) is None
    )


def test_rows_tokenised_in_parts_are_those_of_the_whole(encoders, files, monkeypatch):
    job = Job(encoders["modernbert"], "RTE", files, ONE_STEP)
    whole = job.task.train_rows
    monkeypatch.setattr(tasks, "_CHUNK", 7)
    del job.task.train_rows
    assert len(whole) > 7 and job.task.train_rows == whole


def test_evaluation_takes_no_more_memory_than_training_was_given(encoders, files, tmp_path):
    for rows, evaluated in ((4, 8), (32, 64), (128, 64)):
        job = Job(encoders["modernbert"], "RTE", files, replace(ONE_STEP, batch_rows=rows))
        model = task_head.load(encoders["modernbert"], 2, 32, 1)
        assert job._trainer(model, 1, str(tmp_path), "").args.per_device_eval_batch_size == evaluated


def test_places_in_a_row_are_counted_from_its_first_token_or_refused(encoders, files, tmp_path):
    model = shutil.copytree(encoders["electra"], tmp_path / "model")
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    words = AutoTokenizer.from_pretrained(model)
    assert words.padding_side == "left"
    assert Job(str(model), "SQuAD-1.1", files, ONE_STEP).tokenizer.padding_side == "right"
    words.cls_token = words.convert_ids_to_tokens(9)
    words.save_pretrained(model)
    with pytest.raises(ValueError, match=r"do not begin with \[CLS\], by which SQuAD-1.1 says 'no answer'"):
        Job(str(model), "SQuAD-1.1", files, ONE_STEP)


def test_a_loss_that_diverges_is_an_error_and_no_result(encoders, files, tmp_path):
    wild = Settings(learning_rate=1e20, layer_decay=1.0, epochs=1, warmup_ratio=0.0, bf16=False)
    with pytest.raises(DivergedError, match=r"diverged at learning_rate = 1e\+20; give a lower one"):
        finetune(encoders["modernbert"], "STS-B", 1, files, str(tmp_path), wild)
    assert not list(tmp_path.rglob("*.json"))


def test_it_is_noticed_while_training_goes_on(encoders, files, tmp_path, monkeypatch):
    monkeypatch.setattr("fast_electra.finetuning.finetune._LOOKED_AT", 2)
    wild = Settings(learning_rate=1e20, layer_decay=1.0, epochs=9, warmup_ratio=0.0, bf16=False)
    with pytest.raises(DivergedError, match=r"STS-B seed 1, step [2468] of \d+: weights of the model are no numbers"):
        finetune(encoders["modernbert"], "STS-B", 1, files, str(tmp_path), wild)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wanted": "ColA,MRCP"}, r"'MRCP' is none of CoLA, .*did you mean MRPC\?"),
        ({"num_seeds": 0}, "seeds = 0: give a number of at least 1"),
        ({"data": "nowhere"}, "data = 'nowhere' has nothing of CoLA"),
        ({"model": "no/such/folder"}, "model = 'no/such/folder' has no config"),
        ({"settings": {"epochs": -1}}, "epochs = -1: give a number above 0"),
        ({"settings": {"layer_decay": 1.5}}, "layer_decay = 1.5: give a number from 0 to 1"),
        ({"settings": {"max_length": 65}}, "max_length = 65: .* has 64 positions"),
    ],
)
def test_bad_input_is_refused_with_its_value_and_a_remedy(encoders, files, tmp_path, change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {"model": encoders["modernbert"], "wanted": "CoLA", "num_seeds": 1, "data": files}
    settings = change.pop("settings", {})
    with pytest.raises(ValueError, match=message):
        finetune_runs.finetune_all(**given | change, output=str(tmp_path), settings=Settings(**settings))


def test_several_processes_are_refused(encoders, files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="fine-tuning runs as one process"):
        finetune(encoders["modernbert"], "CoLA", 1, files)


def launch(*arguments):
    command = [sys.executable, str(LAUNCHER), *arguments]
    environment = clean_environment(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--max_train_row", "16"], "--max_train_row is no setting; did you mean --max_train_rows"),
        (["--seed=3"], "--seed is no setting; did you mean --seeds"),
        (["--epochs=abc"], "epochs = 'abc': give a number"),
        (["--epochs", "many"], "epochs"),
        (["--dropout", "2"], "dropout = 2"),
    ],
)
def test_the_launcher_refuses_wrong_options(wrong, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--model", "m", "--output", "o", *wrong])
    assert runpy.run_path(str(LAUNCHER))["main"]() == 2
    assert re.match(rf"error: [^\n]*{message}", capsys.readouterr().err)


def test_help_describes_every_option_and_shows_the_command_as_it_is_written(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(LAUNCHER))["main"]()
    text = capsys.readouterr().out
    assert "\n\npython launchers/finetune.py --model runs/demo/export --tasks CoLA,RTE --data FOLDER --seeds 3" in text
    assert "\nsettings:\n" in text and "<class" not in text and "default: null" not in text
    options = [" ".join(each.split()) for each in text.partition("\noptions:")[2].split("\n  --")[1:]]
    assert len(options) == 5 + len(vars(Settings()))
    for option in options:
        name, meaning = option.split()[0], option.split(maxsplit=2)[2]
        assert not meaning.startswith("("), f"--{name} has no description"
        assert "left out: " in meaning or getattr(Settings(), name, "") is not None
    assert any(option.startswith("epochs EPOCHS passes over the training rows; left out: 3, ") for option in options)


def test_the_launcher_prints_a_table(encoders, files, tmp_path):
    common = ["--model", encoders["modernbert"], "--data", files, "--output", str(tmp_path), "--bf16", "false"]
    done = launch(*common, "--tasks", "CoLA,RTE", "--seeds", "2", "--epochs", "1", "--max_train_rows", "16")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["task", "CoLA", "RTE", "all"]
    assert "RTE seed 2 of 2" in done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tasks"]["RTE"]["accuracy"]["median"] == pytest.approx(
        float(done.stdout.splitlines()[2].split()[2]), abs=0.006
    )


def entailment(folder, split):
    """(texts, label) of each line of RTE's file."""
    lines = [line.split("\t") for line in (folder / "RTE" / f"{split}.tsv").read_text().splitlines()[1:]]
    return [((first, second), ENTAILMENT.index(label)) for _, first, second, label in lines]


def sentiment(folder, split):
    """The same of SST-2's."""
    lines = [line.split("\t") for line in (folder / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]]
    return [((sentence,), int(label)) for sentence, label in lines]


def plain_recipe(model, read, folder, seed, recipe):
    """What transformers' examples/pytorch/text-classification/run_glue.py does: Trainer as it is, dynamic padding."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = {
        split: [{**tokenizer(*texts, truncation=True, max_length=64), "labels": label} for texts, label in lines]
        for split, lines in ((split, read(folder, split)) for split in ("train", "dev"))
    }
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, ignore_mismatched_sizes=True)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            num_train_epochs=recipe["epochs"],
            learning_rate=recipe["learning_rate"],
            per_device_train_batch_size=recipe["batch_rows"],
            warmup_steps=recipe["warmup_ratio"],
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(network, arguments, DataCollatorWithPadding(tokenizer), rows["train"])
        trainer.train()
        found = trainer.predict(rows["dev"])
    return 100 * accuracy_score(found.label_ids, found.predictions.argmax(axis=-1))


PLAIN = {"epochs": 6, "learning_rate": 2e-3, "batch_rows": 16, "warmup_ratio": 0.1}


@pytest.mark.parametrize("num_seeds", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_with_the_same_settings_it_is_within_noise_of_run_glue(num_seeds, encoders, tmp_path):
    """Neither is better by a rank test, and the ranges overlap. Seeds differ by points here, as on real data."""
    folder = write_hard_rte(tmp_path, train=240, dev=400)
    settings = Settings(**PLAIN, layer_decay=1.0, weight_decay=0.0, bf16=False)
    model, seeds = encoders["modernbert"], range(1, num_seeds + 1)
    ours = [finetune(model, "RTE", seed, str(folder), None, settings)["score"] for seed in seeds]
    plain = [plain_recipe(model, entailment, folder, seed, PLAIN) for seed in seeds]
    print("ours", ours, "plain", plain)
    assert stats.mannwhitneyu(ours, plain).pvalue > 0.01
    assert max(min(ours), min(plain)) <= min(max(ours), max(plain)), "the ranges overlap"
    assert abs(statistics.median(ours) - statistics.median(plain)) < 4
    assert min(statistics.median(ours), statistics.median(plain)) > 68, "both learn; guessing gets 60"


REAL = ROOT.parent / "shared" / "data" / "glue"
PRE_TRAINED = Path(os.environ.get("FAST_ELECTRA_ENCODER", ROOT / "runs" / "demo" / "export"))
REAL_RECIPE = {"epochs": 2, "learning_rate": 5e-4, "batch_rows": 32, "warmup_ratio": 0.1}


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the shared GLUE files are not on this machine")
@pytest.mark.skipif(
    not PRE_TRAINED.exists(), reason="no encoder: run `make pretrain`, or name one: FAST_ELECTRA_ENCODER"
)
def test_a_pre_trained_encoder_on_real_sentences_is_within_noise_of_run_glue(tmp_path):
    """SST-2's first 6,000 sentences and its dev set: not worse by a rank test, and the medians near each other.

    Better it may be: rows of like length go together here, and the figures printed say what that gives.
    """
    (tmp_path / "SST-2").mkdir()
    train = (REAL / "SST-2" / "train.tsv").read_text().splitlines(keepends=True)[:6001]
    (tmp_path / "SST-2" / "train.tsv").write_text("".join(train))
    (tmp_path / "SST-2" / "dev.tsv").write_text((REAL / "SST-2" / "dev.tsv").read_text())
    settings = Settings(**REAL_RECIPE, layer_decay=1.0, weight_decay=0.0, max_length=64, bf16=False)
    seeds = range(1, 6)
    ours = [finetune(str(PRE_TRAINED), "SST-2", seed, str(tmp_path), None, settings)["score"] for seed in seeds]
    plain = [plain_recipe(PRE_TRAINED, sentiment, tmp_path, seed, REAL_RECIPE) for seed in seeds]
    print("ours", ours, "plain", plain)
    assert stats.mannwhitneyu(ours, plain, alternative="less").pvalue > 0.01
    assert abs(statistics.median(ours) - statistics.median(plain)) < 4
    assert min(statistics.median(ours), statistics.median(plain)) > 60, "both learn; guessing gets 51"
